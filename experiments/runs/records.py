"""The schemas of what commands write and others read: summaries, lines of metrics, findings, and rows of a bench."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from bigbatch.comm.schema import Amount, AtLeast, Count, Entries, NameText, NumberedFrom, Positive

Whole = Annotated[int, AtLeast(1)]
"""A number of things of which there is at least one."""

MOST_ARMS, MOST_RUNS = 100, 1000
"""The largest numbers of arms of a run, and of runs of a comparison: no figure or table could show more."""


class ServerCounts(TypedDict):
    """What one server of an arm has counted; a strategy of the user's own may count other things."""

    consistency: NotRequired[NameText]
    staleness: NotRequired[Annotated["dict[str, Count]", NumberedFrom(0)]]
    gradients_dropped: NotRequired[Count]


class ArmRow(TypedDict):
    """The results of one arm. Times are in seconds and losses in nats per token; null stands for no number."""

    name: NameText
    global_batch: Whole
    batch_unit: NotRequired[NameText]
    micro_batch: Whole
    accumulation: Whole
    workers: NotRequired[Whole]
    precision: NotRequired[NameText]
    wire: NotRequired[NameText]
    updates: Count
    worker_updates: Count
    skipped_updates: Count
    tokens: Amount
    tokens_per_second: Amount | None
    update_seconds: Amount | None
    compute_seconds: float | None
    communication_seconds: float | None
    total_communication_seconds: float | None
    waiting_seconds: float | None
    bytes_sent_per_update: Amount | None
    peak_memory_bytes: Amount | None
    server_peak_memory_bytes: NotRequired[Amount | None]
    training_loss: float | None
    validation_loss: float | None
    updates_to_target: NotRequired[Amount | None]
    tokens_to_target: NotRequired[Amount | None]
    seconds_to_target: NotRequired[Amount | None]
    padding: NotRequired[float | None]
    imbalance: NotRequired[float | None]
    metrics: NotRequired[dict[str, float | None] | None]
    baseline: NotRequired[dict[str, float | None]]
    noise_scale: NotRequired[float | None]
    gradient_square: NotRequired[float | None]
    gradient_variance: NotRequired[float | None]
    servers: NotRequired[list[ServerCounts]]


class Simulated(TypedDict):
    """Describes the simulated cluster on which a run was trained, as its summary has it."""

    workers: Whole
    network: str
    straggler: str
    gpu: str


class RunSummary(TypedDict):
    """The summary of an experiment over one strategy."""

    strategy: NameText
    workers: Whole
    task: NotRequired[str | None]
    target: NotRequired[float | None]
    target_metric: NotRequired[str | None]
    score: NotRequired[str | None]
    trivial_answer: NotRequired[str | None]
    corpus_sha256: NotRequired[str | None]
    parameters: Count
    arms: Annotated[list[ArmRow], Entries(most=MOST_ARMS)]
    simulated: NotRequired[Simulated | None]
    environment: NotRequired[dict[str, Any]]


class ComparisonSummary(TypedDict):
    """The summary of a comparison: that of each of its runs."""

    runs: Annotated[list[RunSummary], Entries(most=MOST_RUNS)]


class UpdateRecord(TypedDict):
    """A line of the metrics about an update."""

    kind: Literal["update"]
    arm: str
    number: Count
    loss: float | None
    total_tokens: Amount
    total_seconds: Amount | None
    noise_scale: NotRequired[float | None]


class ValidationRecord(TypedDict):
    """A line of the metrics about a validation."""

    kind: Literal["validation"]
    arm: str
    update: Count
    tokens: Amount
    seconds: Amount | None
    loss: float | None
    metrics: NotRequired[dict[str, float | None]]


METRICS_LINES: dict[str, type] = {"update": UpdateRecord, "validation": ValidationRecord}
"""The schema of a line of the metrics, by its kind."""


class ColumnEntry(TypedDict):
    """A column of a finding's table."""

    key: str
    label: str
    decimals: NotRequired[Annotated[int, AtLeast(0, 20)] | None]


class FindingSummary(TypedDict):
    """The summary of a figure about a claim."""

    figure: str
    quick: NotRequired[bool]
    claim: NotRequired[str | None]
    source: NotRequired[str | None]
    criterion: NotRequired[str | None]
    asked: NotRequired[str | None]
    verdict: NotRequired[str | None]
    sentence: NotRequired[str | None]
    columns: NotRequired[list[ColumnEntry]]
    rows: NotRequired[list[dict[str, Any]]]
    runs: NotRequired[list[str]]
    environment: NotRequired[dict[str, Any]]


class Measurements(TypedDict):
    """The summary of anything else that was measured: lists of rows are tables, other values stand by themselves."""

    environment: NotRequired[dict[str, Any]]


class FittedModel(TypedDict):
    """The size of the model that a fit is about; our own decoder's follows from the first four numbers."""

    vocabulary: Whole
    context: Whole
    layers: Whole
    width: Whole
    name: NotRequired[NameText]
    parameters: NotRequired[Whole]
    flops_per_token: NotRequired[Positive]
    parts: NotRequired[list[Whole]]


class Fit(TypedDict):
    """How many updates a loss takes by batch size, as fitted to measurements."""

    least_updates: Positive
    critical_batch: Positive
    target: NotRequired[float | None]
    untold: NotRequired[str | None]
    model: NotRequired[FittedModel | None]


class FitSummary(TypedDict):
    """A summary that has a fit."""

    fit: Fit


class BenchRow(TypedDict):
    """A row of a bench: one all-reduce, or synchronous updates through servers, at one size. Times are in seconds."""

    algorithm: NameText
    ranks: Whole
    bytes: Count
    seconds: Positive
    seconds_low: Amount
    seconds_high: Amount
    algbw: Amount
    busbw: Amount
    exact: bool
    servers: NotRequired[Whole]
    bound_seconds: NotRequired[Amount]


class BenchSummary(TypedDict):
    """The summary of a bench."""

    rows: list[BenchRow]
    overhead_seconds: NotRequired[float]


class RaceRow(TypedDict):
    """A row of a race: one contestant."""

    contestant: NameText
    ranks: Whole
    parameters: Count
    tokens_per_update: Count
    tokens_per_second: Amount
    tokens_per_second_low: Amount
    tokens_per_second_high: Amount
    against: dict[str, Amount]
