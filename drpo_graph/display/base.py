"""What every display can do."""

from drpo_graph.events.schema import Event


class Display:
    """Shows a run's events while it runs; what one does not say for itself, it does nothing about."""

    def start(self) -> None:
        """Begin to show; called once, before the first event."""

    def handle(self, event: Event) -> None:
        """Show one event. Never raises because of where the output goes or what the event's texts hold."""

    def stop(self) -> None:
        """Give the terminal back; called once, also after a failure."""


class NullDisplay(Display):
    """Shows nothing."""
