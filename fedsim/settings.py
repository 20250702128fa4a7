"""The keys of an experiment: a class a table, each key with its default, range and meaning."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.values import setting


@dataclass(frozen=True, kw_only=True)
class ExperimentTable:
    """What the experiment is called, and how long it runs."""

    name: str = setting("quickstart", "names the run and its directory")
    seed: int = setting(0, "fixes partition, sampling, initial draw and batches", low=0)
    rounds: int = setting(30, "federated rounds", low=1)
    stop_at_accuracy: float = setting(
        0.0, "ends a run as soon as its test accuracy gets there; 0: never", low=0, high=1
    )


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """Which examples there are, and which client holds which."""

    dataset: str = setting("digits", "digits, mnist, fashion_mnist, cifar10, file, or split")
    path: str = setting(
        "", "dataset = file: the .npz, .csv or .parquet file; dataset = split: its folder"
    )
    test_path: str = setting("", "dataset = file: a file of the same columns to test on")
    label: str = setting("", "dataset = file: the label column, or the array of labels")
    client: str = setting("", "dataset = file: the column or array of client ids")
    clients: int = setting(50, "clients in the federation; 0 with natural: as many as ids", low=0)
    partition: str = setting(
        "iid", "how examples are dealt: iid, dirichlet, shards, labels, quantity, natural"
    )
    alpha: float = setting(0.3, "dirichlet: concentration, small is uneven", above=0)
    shards_per_client: int = setting(2, "shards: label-sorted shards per client", low=1)
    labels_per_client: int = setting(2, "labels: distinct labels per client", low=1)
    size_sigma: float = setting(1.0, "quantity: sigma of the log-normal client sizes", above=0)
    min_examples: int = setting(1, "every client holds at least so many examples", low=1)
    test_fraction: float = setting(
        0.2, "held out for testing where a dataset has no test split", above=0, below=1
    )
    validation_fraction: float = setting(
        0.0,
        "tests on so much of the training part, held out, instead of the test part; 0: no",
        low=0,
        below=1,
    )
    offset: float = setting(
        0.0, "added to every feature: -0.5 gives pixels in [-0.5, 0.5]", low=-1000, high=1000
    )
    missing: str = setting("refuse", "dataset = file: missing values", choices=("refuse", "impute"))
    standardize: bool = setting(False, "dataset = file: numeric columns to mean 0, deviation 1")


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """The network that every client trains."""

    name: str = setting("mlp", "mlp, cnn or small_cnn")
    width: int = setting(
        0, "units of a dense hidden layer; 0: 200 (mlp), 512 (cnn), 32 (small_cnn)", low=0
    )
    depth: int = setting(0, "hidden layers (mlp) or convolutions (cnn); 0: two", low=0)
    activation: str = setting("relu", "such as relu, tanh, gelu, leaky_relu(0.1)")
    init_gain: float = setting(0.0, "initialisation gain; 0: the activation's own", low=0)


@dataclass(frozen=True, kw_only=True)
class TrainTable:
    """Local training: stochastic gradient descent on the client's own examples."""

    epochs: int = setting(1, "passes over the client's data in a round", low=1)
    steps: int = setting(0, "optimiser steps in a round; 0: as many as the epochs hold", low=0)
    batch_size: int = setting(10, "examples a step; 0: all of the client's", low=0)
    learning_rate: float = setting(0.1, "step size of the first round", above=0)
    momentum: float = setting(0.0, "of the client's optimiser, fresh every round", low=0, below=1)
    weight_decay: float = setting(0.0, "L2 penalty added to the gradient", low=0)
    clip_norm: float = setting(0.0, "largest gradient norm; 0: no clipping", low=0)
    proximal_mu: float = setting(0.0, "FedProx: pull towards the global model", low=0)
    schedule: str = setting(
        "constant",
        "learning rate over the rounds",
        choices=("constant", "linear", "cosine", "exponential"),
    )
    decay: float = setting(0.99, "exponential: factor from round to round", above=0, high=1)
    compiler: str = setting(
        "auto",
        "what runs local training: xla (needs JAX), torch; auto: xla where it can",
        choices=("auto", "torch", "xla"),
    )
    vectorize: str = setting(
        "auto",
        "clients of a block at once, or one after another; auto: by the model's size",
        choices=("auto", "always", "never"),
    )
    block_clients: int = setting(0, "clients that are trained in one call; 0: by a rule", low=0)
    precision: str = setting(
        "float32",
        "of forward and backward; parameters and their updates stay float32",
        choices=("float32", "bfloat16"),
    )


@dataclass(frozen=True, kw_only=True)
class ServerTable:
    """Who is asked in a round, and how the answers become the next model."""

    strategy: str = setting("fedavg", "how updates are aggregated")
    clients_per_round: int = setting(10, "cohort size", low=1)
    learning_rate: float = setting(0.0, "server step size; 0: the strategy's own", low=0)
    momentum: float = setting(0.9, "fedavgm", low=0, below=1)
    beta_1: float = setting(0.9, "fedadam, fedyogi", low=0, below=1)
    beta_2: float = setting(0.99, "fedadam, fedyogi", low=0, below=1)
    tau: float = setting(1e-3, "fedadam, fedyogi, fedadagrad: adaptivity", above=0)
    byzantine_clients: int = setting(0, "krum, multikrum, bulyan: clients to withstand", low=0)
    selected_clients: int = setting(1, "multikrum: updates that are averaged", low=1)
    trim_fraction: float = setting(0.2, "fedtrimmedavg: cut from each end", low=0, below=0.5)
    q: float = setting(0.1, "qfedavg: fairness", low=0)
    evaluate_every: int = setting(1, "test the global model every so many rounds", low=1)
    round_timeout_seconds: float = setting(600.0, "a reply that takes longer is missed", above=0)
    left_out: str = setting("", "clients that are never asked, such as 2,5: their rows say so")
    weighting: str = setting(
        "auto",
        "of updates in a mean: by examples or equal; auto: equal where updates are clipped",
        choices=("auto", "examples", "equal"),
    )
    norm_bound: float = setting(
        0.0, "longer updates are scaled down to this norm before they are averaged; 0: no", low=0
    )

    @property
    def absent(self) -> tuple[int, ...]:
        """The clients of ``left_out``, by number."""
        return tuple(int(number) for number in self.left_out.split(",") if number.strip())


@dataclass(frozen=True, kw_only=True)
class PrivacyTable:
    """What is promised about people's data; see docs/privacy.md. Noise comes with clipping."""

    level: str = setting(
        "none",
        "user: of a client's whole data; example: of each example, DP-SGD in the client; "
        "local: user, noised before it leaves the client",
        choices=("none", "user", "example", "local"),
    )
    clipping_norm: float = setting(
        0.0, "C: longest update (user, local), gradient (example); adaptive: the first", low=0
    )
    clipping: str = setting(
        "fixed",
        "user: fixed, or adaptive: follows a quantile of the updates' norms",
        choices=("fixed", "adaptive"),
    )
    target_quantile: float = setting(
        0.5, "adaptive: share of updates that stay as they are", above=0, below=1
    )
    clipping_learning_rate: float = setting(0.2, "adaptive: step of log C a round", above=0)
    noise_multiplier: float = setting(
        0.0, "z: the noise's deviation in clipping norms; 0: by target_epsilon", low=0
    )
    target_epsilon: float = setting(
        0.0, "epsilon that all rounds may come to; the noise is solved for; 0: by z", low=0
    )
    delta: float = setting(0.0, "below 1 / people (user, local) or 1 / examples", low=0, below=1)
    accountant: str = setting(
        "pld", "pld: privacy loss distributions; rdp: Renyi", choices=("pld", "rdp")
    )
    epsilon_budget: float = setting(0.0, "the run ends before it spends more; 0: no end", low=0)
    noise_by: str = setting(
        "server",
        "user: who adds the noise; clients: each a share of it",
        choices=("server", "clients"),
    )
    noise_cohort: int = setting(
        0, "user: noise as small as in a cohort of so many; 0: of clients_per_round", low=0
    )
    reproducible_noise: bool = setting(
        False, "noise from the run's seed, for studies: who knows the seed can take it off"
    )
    secure_aggregation: bool = setting(
        False, "the server sees the sum of the updates alone (Bell et al. 2020)"
    )
    value_range: float = setting(
        8.0, "secure_aggregation: parts of an update beyond it are cut", above=0
    )

    @property
    def on(self) -> bool:
        """Whether anything is promised by noise."""
        return self.level != "none"


@dataclass(frozen=True, kw_only=True)
class AdversaryTable:
    """Clients that attack the model, to measure what an aggregation withstands."""

    kind: str = setting(
        "none",
        "what hostile clients do",
        choices=("none", "label_flip", "sign_flip", "scaled", "backdoor"),
    )
    fraction: float = setting(0.0, "share of the clients that are hostile", low=0, high=1)
    scale: float = setting(10.0, "scaled, backdoor: factor of the hostile update", above=0)
    source_label: int = setting(-1, "label_flip: the class that is relabelled; -1: all", low=-1)
    target_label: int = setting(
        0, "label_flip, backdoor: the class that it is to be taken for", low=0
    )


@dataclass(frozen=True, kw_only=True)
class EngineTable:
    """What executes the clients. Results do not depend on it."""

    name: str = setting(
        "auto",
        "ray, inline; auto: inline where Ray could not pay for its start",
        choices=("auto", "ray", "inline"),
    )
    workers: int = setting(0, "ray: worker processes; 0: one per core of machine or cluster", low=0)
    address: str = setting("", "ray: join the cluster at this address")
    device: str = setting("cpu", "where clients train", choices=("cpu", "cuda"))


@dataclass(frozen=True, kw_only=True)
class UpdateTable:
    """How updates are compressed before they are sent, and the model before it comes down."""

    codec: str = setting("none", "none, float16, int8, topk, drive")
    coder: str = setting(
        "none", "lossless stage behind the codec, both ways", choices=("none", "zstd", "entropy")
    )
    zstd_level: int = setting(3, "coder = zstd: effort", low=1, high=22)
    topk_fraction: float = setting(0.1, "topk: share of the coordinates sent", above=0, high=1)
    error_feedback: bool = setting(True, "topk: what was not sent is added to the next update")
    downlink: str = setting("none", "how the model comes down", choices=("none", "float16", "int8"))
    packed: bool = setting(False, "a model travels as one array: Flower fetches arrays one by one")

    @property
    def codes_up(self) -> bool:
        """Whether updates travel as payloads, and not as arrays."""
        return self.packed or {self.codec, self.coder} != {"none"}

    @property
    def codes_down(self) -> bool:
        """Whether the model comes down as a payload, and not as arrays."""
        return self.packed or {self.downlink, self.coder} != {"none"}

    @property
    def codes(self) -> bool:
        """Whether models travel in any other way than as arrays."""
        return self.codes_up or self.codes_down


@dataclass(frozen=True, kw_only=True)
class MeasureTable:
    """How much is measured. The model's bits are the same whatever is chosen here."""

    level: str = setting(
        "light",
        "off: clocks and losses alone; light: what needs no extra pass over the data; full: all",
        choices=("off", "light", "full"),
    )
    full_every: int = setting(0, "takes level full in every so many rounds; 0: never", low=0)
    device: str = setting("", "a device profile, by name or as a .toml file: modelled figures")
    energy: str = setting(
        "none", "rapl: the processor's own energy counter", choices=("none", "rapl")
    )
    calibrate: bool = setting(False, "times the activations on this machine before the start")


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """Where a run reads and writes."""

    out: str = setting("", "the run directory; empty: a new one under runs/")
    resume: bool = setting(False, "continue the run in run.out")
    data_dir: str = setting("", "datasets; empty: $FEDSIM_DATA_DIR, then the user's cache")
