"""What a part of a search is called in a run's fingerprint: a name that stays when the code moves."""


def stored_name(kind: type[object]) -> str:
    """Return what a class is called in what is stored: its ``STORED_NAME``, else its module and name.

    Ours have one, so that a run resumes with a version that keeps them elsewhere. A subclass inherits none: it is
    another part.
    """
    name = vars(kind).get("STORED_NAME")
    return name if isinstance(name, str) else f"{kind.__module__}.{kind.__qualname__}"


def name_of(part: object) -> str:
    """Return the module and name of a function, or what an object's class is called."""
    if isinstance(part, type):
        return stored_name(part)
    if hasattr(part, "__qualname__"):
        return f"{part.__module__}.{part.__qualname__}"
    return stored_name(type(part))
