"""Who sent feedback, told without keeping anybody's address."""

import hashlib
from ipaddress import ip_address, ip_network

from bentos.captioner.tokens import NamedToken

ADDRESS = "address:"


def name_of(token: NamedToken | None, host: str | None) -> str | None:
    """`token:<its name>`, else `address:<two bytes of the address' hash>`.

    Two bytes tell the clients of a service apart and name none: 65,536 IPv4 addresses share them,
    while a whole hash, salted or not, gives its address to whoever tries all of them. An IPv6
    client has a whole /64 to choose addresses from. Loopback, a program or proxy on this machine,
    tells nothing: None.
    """
    if token is not None:
        return f"token:{token.name}"
    try:
        address = ip_address(host or "")
    except ValueError:
        return None
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback:
        return None
    if address.version == 6:
        address = ip_network((int(address), 64), strict=False).network_address
    return ADDRESS + hashlib.sha256(str(address).encode()).hexdigest()[:4]
