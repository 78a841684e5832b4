"""Words that the COCO evaluation's tokenizer knows, as patterns: abbreviations and the like."""


def _any_of(words: str) -> str:
    return "|".join(sorted(words.split(), key=len, reverse=True))


# A full stop after these may end a sentence: a letter alone behind it is a word of its own.
_ENDING = """
    al co ct ga jr ky md mo rd rt sq sr va vt ala apr aug bhd cos dak dec esq est etc ext feb fla
    fri inc ind jan jul jun kan ltd mar mon neb nev nov oct plc sep seq sys tel thu tue wed wis wyo
    ariz assn bldg blvd bros colo conn corp intl kans mich minn mont okla penn sept tenn tues univ
    wisc bancorp calif cont'd thurs ph\\.d
"""
_TITLES = """
    cf dr ft lt mr ms mt ph st vs wm adj adm adv ave cie col cpl det drs ens gen gov hon jos maj mme
    mrs pfc pvt rep rev sen sfc sgt spc ste alex asst atty brig capt cmdr dept elec govs insp invt
    mlle msgr natl pres prof reps sens supt assoc comdr lieut messrs profs
"""
_SPELLED = (  # some only with these capitals
    "A[Zz]|L[Aa]|P[Aa]|A(?i:rk)|D(?i:el)|I(?i:ll)|O(?i:re)|T(?i:ex)|M(?i:ass|iss)|W(?i:ash)"
    "|[Pp]{1,2}[Tt][ey][Ss]?"
)
SENTENCE_ENDING = f"(?:(?i:{_any_of(_ENDING)})|{_SPELLED})"
ABBREVIATIONS = f"(?:(?i:{_any_of(_ENDING + _TITLES)})|{_SPELLED}|[Mm]f[Gg]|[Mm]t[Gg])"
BEFORE_NUMBERS = f"(?i:{_any_of('ca fig figs prop no nos art p pp op')})"
ENDINGS = "(?i:{})".format(  # of file names
    _any_of(
        "bat bmp c cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov pdf php pl png "
        "ppt ps py sql tar txt wav x xml zip"
    )
)
_OPENING = """
    A An As At He If In It So We But Her Now One Our She The Yet You About According Additionally
    After Earlier Here However Last Many More Once Other Since Some Such That Their Then There These
    They This What When While
"""
OPENINGS = "(?:{}|M(?i:[rs]\\.))".format(  # of sentences, after "Plan B."
    "|".join(
        f"{word[0]}(?i:{word[1:]})" for word in sorted(_OPENING.split(), key=len, reverse=True)
    )
)
