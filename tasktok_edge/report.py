"""What `validate` found, as report.json: frozen models whose field descriptions are its documented schema.

    python -m tasktok_edge.report            # prints the JSON schema

Metrics, agreement and differences are in [0, 1] or [-1, 1]; drops on the command line are in points of 100.
"""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasktok_edge.interval import Outcome

SCHEMA_VERSION = 1
Metric = Literal["top-1", "top-5", "mIoU", "mAP", "same answers"]
ByTask = dict[str, float]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _told(text: str) -> object:
    return Field(description=text)


class Column(_Part):
    """One model, or no restoration, on all frames."""

    name: Annotated[str, _told("clean, degraded, server, another model's name, or a bundle's")]
    metrics: Annotated[ByTask, _told("each task's own metric")]
    top_5: Annotated[ByTask, _told("the same for classification's five best labels")]
    psnr_db: Annotated[ByTask, _told("of restored frames against clean ones, the mean over frames, peak 255")]
    ssim: Annotated[ByTask, _told("the same, structural similarity")]


class Group(_Part):
    """The same metrics on the frames of one degradation and severity."""

    name: str
    frames: int
    metrics: Annotated[dict[str, ByTask], _told("by column, by task")]


class Comparison(_Part):
    """A bundle beside the server on one task."""

    task: str
    metric: Metric
    frames: int
    server: float
    device: float
    difference: Annotated[float, _told("device minus server")]
    low: Annotated[float, _told("lower end of the 95 % interval of the difference, paired bootstrap over frames (BCa)")]
    high: Annotated[float, _told("upper end")]
    outcome: Annotated[Outcome, _told("pass: a larger drop than allowed is ruled out; fail: the allowed one is")]
    frames_needed: Annotated[int, _told("frames that would narrow the interval to the allowed drop on either side")]
    agreement: Annotated[float, _told("share of frames with the same answer as the reference model's")]
    psnr_to_server_db: Annotated[float | None, _told("of restored frames against the server's, mean over frames, at most 100")]


class Bad(_Part):
    """One of the frames where a bundle did worst against the server."""

    task: str
    frame: Annotated[str, _told("its name in the data")]
    index: Annotated[int, _told("its position")]
    server: Annotated[float | None, _told("the metric of this frame alone; none without labels")]
    device: float | None
    psnr_to_server_db: float | None


class Judged(_Part):
    """One bundle."""

    name: str
    sha256: Annotated[str, _told("of its manifest, which has the hashes of all else")]
    engine: str
    device: str
    precision: Annotated[str, _told("what it computed in")]
    tasks: Annotated[tuple[Comparison, ...], _told("those that are answered; others are restored for alone")]
    restored_to_server_db: Annotated[ByTask, _told("psnr_to_server_db of all tasks")]
    worst: tuple[Bad, ...]
    outcome: Outcome
    reasons: tuple[str, ...]


class Report(_Part):
    """A whole validation."""

    schema_version: int = SCHEMA_VERSION
    tasktok_edge: Annotated[str, _told("version")]
    created_utc: str
    machine: str
    data: Annotated[str, _told("what the frames are, and how they were degraded")]
    frames: Annotated[dict[str, int], _told("by task")]
    server: Annotated[str, _told("the checkpoint compared with")]
    server_sha256: str
    same_as: Annotated[str, _told("the model whose answers `agreement` counts: the server, or what the bundles were made of")]
    max_drop: Annotated[float, _told("what a task may lose, in [0, 1]")]
    min_psnr_db: Annotated[float | None, _told("what psnr_to_server_db must reach")]
    metrics: dict[str, Metric]
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    bundles: tuple[Judged, ...]
    notes: tuple[str, ...]
    outcome: Outcome


if __name__ == "__main__":
    print(json.dumps(Report.model_json_schema(), indent=2))
