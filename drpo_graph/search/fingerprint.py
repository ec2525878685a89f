"""What identifies a run: the settings that decide its result, its prompts, its parts, each hashed."""

from collections.abc import Mapping

from drpo_graph.errors import FingerprintMismatchError
from drpo_graph.parts.identity import stored_name
from drpo_graph.parts.part_identity import PYTHON
from drpo_graph.parts.protocols import Components
from drpo_graph.prompts.library import PromptLibrary
from drpo_graph.records import Role, digest_json
from drpo_graph.settings.settings import Settings

PARTS = "parts"
"""Tells code and parameters of parts of the user's own; absent from runs of former versions."""


def make_fingerprints(
    settings: Settings, prompts: PromptLibrary, components: Components, *, models: Mapping[Role, str]
) -> dict[str, str]:
    """Return the hashes by what they are of; a resumed run must have the same.

    Of the settings, where models are served, and how fast, is left out; the models may have been given as instances.
    """
    parts = [components.selector, components.critic, components.rewriter, components.beam_policy]
    names = [_identify(part) for part in parts]
    if components.example_retriever is not None:
        # Only where there is one: a run that was started before there were any is the same.
        names += [_identify(components.example_retriever), f"k={settings.k}"]
    if components.screen is not None:
        names.append(_identify(components.screen))
    fields = settings.fingerprint_fields()
    for role, model in models.items():
        role_fields = fields[role]
        assert isinstance(role_fields, dict)
        role_fields["model"] = model
    return {
        "settings": digest_json(fields),
        "prompts": prompts.fingerprint,
        "components": digest_json([*names, components.data_digest]),
    }


def check_same(own: Mapping[str, str], started_with: Mapping[str, str]) -> None:
    """Do nothing when a run was started with the same settings, prompts and parts.

    Raises:
        FingerprintMismatchError: it was not.
    """
    changed = tuple(name for name, value in own.items() if not _is_same(name, value, started_with.get(name)))
    if changed:
        raise FingerprintMismatchError(
            f"This run was started with other {' and '.join(changed)}. Resume it with the same ones, start a new run, "
            "or accept the change with --force, as for a function that was mended.",
            changed,
        )


def fingerprint_parts(components: Components) -> str:
    """Return the hash of parts of the user's own, behind the version of Python that their code is of."""
    return f"{PYTHON}:{digest_json(dict(components.identities))}"


def _is_same(name: str, own: str, former: str | None) -> bool:
    if name == PARTS and (former is None or former.partition(":")[0] != PYTHON):
        # Begun before it was noted, or the same functions are other code.
        return True
    return own == former


def _identify(part: object) -> str:
    """Return a part's name as it always was: of a function, the module is that of its type."""
    name = getattr(part, "__qualname__", None)
    return stored_name(type(part)) if name is None else f"{type(part).__module__}.{name}"
