"""The terms on which a server takes requests for a model: fields that it refuses, and what it calls them instead."""

import re
from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue

from drpo_graph.records import Record

LIMIT_FIELDS = ("max_completion_tokens", "max_tokens")
"""The two names of a reply's token limit: the chat's own, and the older one."""

OPTIONAL_FIELDS = ("temperature", "top_p", "stop", "seed", "n", "reasoning_effort", "stream_options")
"""Fields that a request can do without."""

_FORMAT_FIELDS = ("response_format", "tools", "tool_choice", "logprobs", "top_logprobs")
_KNOWN = (*LIMIT_FIELDS, *OPTIONAL_FIELDS, *_FORMAT_FIELDS)

_DISTINCT = re.compile(r"\b(temperature|top_p|max_completion_tokens|max_tokens|reasoning_effort|stream_options|seed)\b")
_QUOTED = re.compile(rf"[`'\"]({'|'.join(_KNOWN)})[`'\"]")
_REFUSING = re.compile(
    r"(un|not |n't )(support|recogni[sz]|permit|allow|accept)|unknown|unexpected|unrecogni[sz]ed|extra.(input|field)"
    r"|does not support|forbidden|deprecated|only the default|cannot (both )?be (specified|set|used)|not both|no longer"
    r"|invalid (field|parameter|argument)|only .{0,40} (is|are) supported|strictly positive"
    r"|(must be|at most) 1(?![.\d])|not an? supported|(not |un)available|only .{0,20} is allowed|only be set",
    re.I,
)
_NEVER_TAKEN = re.compile(
    r"unsupported (parameter|field|argument)|not (an? )?supported|not permitted|extra_forbidden|extra (input|field)"
    r"|un(known|recogni[sz]ed|expected)|instead|deprecated|does not (support|accept) (the )?(field|parameter|argument)",
    re.I,
)
# What Anthropic calls it, which LangChain's client is given under its usual name.
_EFFORT = re.compile(r"\boutput_config\.effort\b|\beffort(?= parameter\b)")
_ONE_OF_BOTH = re.compile(r"\bboth\b|only one|either", re.I)


class Terms(Record):
    """What a server has refused of the requests for one model; the fields of a request that it takes follow from it."""

    dropped: tuple[str, ...] = ()
    """Fields that are no longer sent."""
    limit_field: str | None = None
    """What a chat's token limit is called, where it is not ``max_completion_tokens``."""

    def apply(self, fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Return a request's fields on these terms."""
        named = {self._name(name): value for name, value in fields.items()}
        return {name: value for name, value in named.items() if name not in self.dropped}

    def after(self, refused: Sequence[str]) -> "Terms":
        """Return the terms that are left when a server has refused fields; the same where nothing can be changed."""
        limit = next((name for name in refused if name in LIMIT_FIELDS), None)
        if limit is not None and self.limit_field is None:
            other = LIMIT_FIELDS[1 - LIMIT_FIELDS.index(limit)]
            return self.model_copy(update={"limit_field": other})
        new = [name for name in refused if name in OPTIONAL_FIELDS and name not in self.dropped]
        return self.model_copy(update={"dropped": (*self.dropped, *new)}) if new else self

    def describe_since(self, former: "Terms") -> str:
        """Return what these terms add to former ones, for a person to read."""
        new = [name for name in self.dropped if name not in former.dropped]
        told = [f"{' and '.join(new)} {'is' if len(new) == 1 else 'are'} no longer sent"] if new else []
        if self.limit_field != former.limit_field:
            told.append(f"its token limit goes by the name of {self.limit_field}")
        return "; ".join(told)

    def _name(self, field: str) -> str:
        return self.limit_field if field in LIMIT_FIELDS and self.limit_field else field


NO_TERMS = Terms()


def find_refused(message: str, body: object, *, param: str = "") -> tuple[str, ...]:
    """Return the fields of a request that a 400 or 422 refuses to take, by the names that it was sent under.

    A server names them in ``param``, as the place of each fault in a ``detail`` list, or in words: between quotes, or,
    for names that no prose has. Words of refusal stand beside it: a value out of bounds is no refused field.
    """
    message = _EFFORT.sub("reasoning_effort", message)
    told = f"{message} {_types_in(body)}"
    if not _REFUSING.search(told):
        return ()
    named = [*_find_places(body), *([param] if param else [])]
    known = [name for name in _KNOWN if any(re.split(r"[.\[]", place)[0] == name for place in named)]
    known = known or _find_in_words(message)
    if not known:
        return ()
    if {"temperature", "top_p"} <= {*known, *_find_in_words(message)} and _ONE_OF_BOTH.search(message):
        # The temperature says more of how a role is sampled.
        return ("top_p",)
    is_limit_refused = bool(_NEVER_TAKEN.search(told))
    return tuple(name for name in known if name not in LIMIT_FIELDS or is_limit_refused)


def _find_in_words(message: str) -> list[str]:
    named = {match[1] for match in _QUOTED.finditer(message)} or {match[1] for match in _DISTINCT.finditer(message)}
    # "Unsupported parameter: 'a' ... Use 'b' instead": b is what the server wants.
    wanted = {match[1] for match in re.finditer(r"\buse [`'\"]?(\w+)[`'\"]? instead", message, re.I)}
    return [name for name in _KNOWN if name in named - wanted]


def _find_places(body: object) -> list[str]:
    """Return the last name in the place of each fault that a body lists, as FastAPI's servers write it."""
    places = (fault.get("loc") for fault in _faults_in(body))
    return [str(next((one for one in loc if one in _KNOWN), "")) for loc in places if isinstance(loc, list) and loc]


def _types_in(body: object) -> str:
    """Return what a body calls its faults, its own code included."""
    code = body.get("code") if isinstance(body, Mapping) else None
    return f"{code or ''} " + " ".join(str(fault.get("type", "")) for fault in _faults_in(body))


def _faults_in(body: object) -> Iterator[Mapping[str, object]]:
    """Yield the entries of a body's list of faults, however deep it stands."""
    if isinstance(body, Mapping):
        listed = next((body[name] for name in ("detail", "error", "message") if body.get(name)), None)
        yield from _faults_in(listed)
    elif isinstance(body, list):
        yield from (one for one in body if isinstance(one, Mapping) and "loc" in one)
