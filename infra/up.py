"""`make up`: the local stack stays up until Ctrl-C: Prefect, MLflow, the champion."""

import sys
import time

from rich.console import Console
from rich.markup import escape

from configs.loader import from_command_line
from infra.stack import Stack, StackError
from tasks.registry import history, lineage

PORTS = {"prefect": 4200, "mlflow": 5000, "service": 3000}


def main() -> int:
    _, _, config = from_command_line(__doc__ or "")
    console = Console(highlight=False)
    try:
        with Stack(config.name, PORTS) as stack:
            with console.status("Prefect, MLflow and a worker start"):
                stack.start_servers()
                # Prefect reads its settings on import: only now does it find our server.
                from infra.observer import Observer

                Observer(stack.prefect_url, stack.check).close_unfinished_runs()
                stack.start_worker()
                served = _serve_champion(stack)
            _say(console, stack, served)
            while True:
                stack.check()
                time.sleep(1)
    except StackError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        console.print("\nEvery process is ended.")
    return 0


def _serve_champion(stack: Stack) -> str | None:
    """Serves the champion's Bento, if there is a champion; says which version."""
    champion = history.champion(stack.model_name)
    if champion is None:
        return None
    tag = lineage.bento(champion)
    if tag is None:  # the alias was set by hand
        raise StackError(f"{champion} has no Bento: promote one by the training flow")
    stack.start_service(tag)
    return f"v{champion.version}"


def _say(console: Console, stack: Stack, served: str | None) -> None:
    console.print(f"[bold]Prefect[/]    {stack.prefect_url}")
    console.print(f"[bold]MLflow[/]     {stack.mlflow_url}")
    if served:
        console.print(f"[bold]captioner[/]  {stack.service_url}  ({stack.model_name} {served})")
        console.print(f"  curl -F image=@picture.png {stack.service_url}/v1/caption")
    else:
        console.print(f"[bold]captioner[/]  {stack.model_name} has no champion yet: run make demo")
    console.print("\nTo use them from another terminal:")
    for key in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "CAPTIONLOOP_CAPTURES", "BENTOML_HOME"):
        console.print(f"  export {key}={stack.environment[key]}")
    console.print("\nCtrl-C ends all of it.")


if __name__ == "__main__":
    sys.exit(main())
