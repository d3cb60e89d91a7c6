"""The small checkpoint that comes with the package."""

from __future__ import annotations

from pathlib import Path


class FolderName(str):
    """A folder as Transformers keeps it, in JSON as well, and `/ name` as a Path has it."""

    __slots__ = ()

    def __truediv__(self, name: str) -> Path:
        return Path(self) / name


def small_bark_path() -> FolderName:
    """Folder of the small Bark that comes with the package: a few megabytes that say digits and short phrases.

    `AutoProcessor.from_pretrained` and `BarkModel.from_pretrained` load it without a network. Its README.md says which
    words and voices it has, and how well it speaks. The processor can be saved again because this is a str; files in it
    are `small_bark_path() / "README.md"`.

    Raises
    ------
    FileNotFoundError
        The checkpoint is not there: the package was installed without its data.
    """
    folder = Path(__file__).parent
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"the small Bark: expected a checkpoint in {folder}, which has no model.safetensors")
    return FolderName(folder)
