"""What every display can do."""

from typing import Protocol

from drpo_graph.events.schema import Event


class Display(Protocol):
    """Shows a run's events while it runs."""

    def start(self) -> None:
        """Begin to show; called once, before the first event."""

    def handle(self, event: Event) -> None:
        """Show one event. Never raises because of where the output goes or what the event's texts hold."""

    def stop(self) -> None:
        """Give the terminal back; called once, also after a failure."""


class NullDisplay:
    """Shows nothing."""

    def start(self) -> None:
        """Do nothing."""

    def handle(self, event: Event) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""
