"""Official files to a checkpoint of ours: safetensors, every tensor as it was, and where it comes from."""

from pathlib import Path

from tasktok_edge.errors import UsageError
from tasktok_edge.model.checkpoint import Checkpoint, checkpoint_folder, load_checkpoint, save_checkpoint
from tasktok_edge.model.official.files import find_parts, is_official
from tasktok_edge.staging import stage


def convert(name: str | Path, out: Path, *, pick: str | None = None, overwrite: bool = False) -> Checkpoint:
    """Write the checkpoint folder `out` from official files; nothing half-written stays. Weights keep all their bits."""
    folder = checkpoint_folder(name)
    if not is_official(folder) and (folder / "config.json").is_file():
        raise UsageError(f"'{folder}' is a checkpoint of tasktok-edge already: give a folder of official .pt files")
    loaded = load_checkpoint(folder, pick=pick)
    parts = find_parts(folder, pick)
    files = {part: {"name": path.name, "sha256": loaded.sources[part]} for part, path in parts.found.items()}
    facts = {"source": "official TaskTok files", "pick": parts.pick, "files": files}
    with stage(out, overwrite=overwrite) as target:
        save_checkpoint(target, loaded.model, facts=facts, exact=True)
    return load_checkpoint(out)


if __name__ == "__main__":  # python -m tasktok_edge.convert
    from tasktok_edge.cli import verb

    verb("convert")()
