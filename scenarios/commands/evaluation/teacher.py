"""The options ``--teacher`` and ``--scorer``."""


def teacher_table(text: str | None, option: str = "--teacher") -> dict[str, str | int] | None:
    """``NETWORK:EPOCHS`` as the table of a teacher or scorer; the epochs may be left out."""
    from distill.errors import InputError, clipped

    if text is None:
        return None
    network, separator, epochs = text.rpartition(":") if text.rpartition(":")[2].isdecimal() else (text, "", "")
    if not network or len(epochs) > 6:
        raise InputError(f"{option} is {clipped(text, 60)!r}; allowed: NETWORK or NETWORK:EPOCHS, for example ConvNet:20.")
    return {"network": network, **({"epochs": int(epochs)} if separator else {})}
