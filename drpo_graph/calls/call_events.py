"""What a run tells of its model calls: each began, failed, or is stored."""

from drpo_graph.calls.ledger import CallRecord
from drpo_graph.events.emitter import Emitter
from drpo_graph.events.schema import CallFailed, CallFinished, CallStarted
from drpo_graph.models.clients import ModelClient
from drpo_graph.models.request import Request
from drpo_graph.models.tracing import find_place

_PLACE = ("level", "candidate_id", "query_id")


def tell_started(emitter: Emitter, client: ModelClient, key: str, *, request: Request) -> None:
    """Tell that a call's first request is sent, and what it is made for."""
    place = find_place()
    about = {
        "run_id": emitter.run_id,
        "role": client.role,
        "model": client.settings.model,
        "key": key,
        "num_samples": request.num_samples,
    }
    emitter.emit(CallStarted.model_validate({**about, **{name: place.get(name) for name in _PLACE}}))


def tell_failed(emitter: Emitter, client: ModelClient, key: str, *, failure: object) -> None:
    """Tell that a call that was started came to nothing; what it failed of has a kind, or only a name."""
    kind = str(getattr(failure, "kind", type(failure).__name__))
    emitter.emit(CallFailed(run_id=emitter.run_id, role=client.role, model=client.settings.model, key=key, kind=kind))


def tell_finished(
    emitter: Emitter, record: CallRecord, key: str, *, duration_s: float, cost_usd: float | None, is_replayed: bool
) -> None:
    """Tell that a call is in the ledger."""
    emitter.emit(
        CallFinished(
            run_id=emitter.run_id,
            role=record.role,
            model=record.model,
            key=key,
            num_samples=len(record.choices),
            duration_s=round(duration_s, 4),
            usage=record.usage,
            cost_usd=cost_usd,
            from_ledger=is_replayed,
        )
    )
