"""Training curves as TensorBoard event files."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def curves(folder: Path, done: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that draws a row of the history; epochs after ``done`` of a killed run are purged."""
    # Imported here: TensorBoard takes a second that no other command should wait for.
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(log_dir=str(folder), purge_step=done + 1 if done else None) as writer:

        def draw(row: Mapping[str, Any]) -> None:
            for name, value in row.items():
                if name not in ("stage", "epoch"):
                    writer.add_scalar(f"{row['stage']}/{name}", value, row["epoch"])
            writer.flush()

        yield draw
