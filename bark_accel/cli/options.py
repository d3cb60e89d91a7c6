"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# typer reads annotations at run time, so these are spelled as Python 3.10's typing has them.
Model = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--model",
        metavar="PATH_OR_ID",
        help="A folder or a Hub model id, such as suno/bark-small. Not given: the small Bark that comes with "
        "bark_accel, which says digits and short phrases.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(help="same, float16, bfloat16, int8, w8a8: smaller weights, faster, not stock's tokens."),
]
KvCacheDtype = Annotated[
    str,
    typer.Option(
        help="auto, int8: keys and values of 8 bits, less memory, faster in batches, not stock's tokens; CPU."
    ),
]
FitWindows = Annotated[
    bool,
    typer.Option("--fit-windows", help="Fine windows as long as needed: sooner for short speech, not stock's sound."),
]
LongCoarseWindows = Annotated[
    bool,
    typer.Option("--long-coarse-windows", help="Fewer prompts of the coarse stage: sooner, not stock's tokens."),
]
Device = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Where the model runs: cpu, cuda, cuda:1 ... Not given: cpu."),
]
Dtype = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="The model's own dtype: float32, float16 or bfloat16. Not given: the checkpoint's."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the random numbers.")]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        help="The file to write: .wav, .flac, .ogg or .mp3; with --stream, - is raw PCM (s16le) to stdout.",
    ),
]
Voice = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="PRESET", help="A voice: an .npz file, or a name that the checkpoint knows."),
]
MaxSeconds = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(min=0.02, help="Stop (each chunk) after this much audio. Not given: the model's own limit."),
]
Stream = Annotated[bool, typer.Option("--stream", help="Write the audio while it is generated.")]
Policy = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="With --stream: low_latency (default), preview (two codebooks only) or exact."),
]
SaveVoice = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Write the voice that was heard (of a file: its first chunk's) to this .npz file."),
]
