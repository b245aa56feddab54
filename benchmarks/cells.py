"""The published numbers that `reproduce.py` is after, and the commands that lead to them.

Methods of the survey; iMAML, ANIL, BOIL, Meta-SGD and MAML++ have presets, and no cell.
Settings that are a paper's are in `jaxmeta.presets`, with their sources; a comment here says what a command changes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

Result = dict[str, Any]  # a file of `results/`


class Accuracy(NamedTuple):
    """An accuracy in per cent on episodes of that kind, and the paper's, as it prints it."""

    ways: int
    shots: int
    paper: str | None
    query_mode: str = "transductive"
    within_groups: bool = False

    @property
    def what(self) -> str:
        ways = f"{self.ways} ways{' of one alphabet' * self.within_groups}"
        return f"{ways}, {self.shots} shot{'s' * (self.shots > 1)}, {self.query_mode}, %"

    def find(self, result: Result) -> tuple[float, float] | None:
        wanted = (self.ways, self.shots, self.within_groups, self.query_mode)
        judged = [one for one in [result.get("result"), *result.get("evaluations", ())] if one]
        kinds = [(*kind(one["source"]), one["query_mode"]) for one in judged]
        if kinds.count(wanted) > 1:
            raise ValueError(f"there are {kinds.count(wanted)} evaluations on {wanted}: which one counts?")
        if wanted not in kinds:
            return None
        found = judged[kinds.index(wanted)]
        return 100 * found["mean"], 100 * found["interval"]


def kind(source: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Ways, shots, and whether an episode's classes are of one group."""
    return source["ways"], source["shots"], source.get("within_groups", False)


class Error(NamedTuple):
    """The mean squared error after some inner steps, on sinusoids."""

    steps: int
    paper: str | None

    @property
    def what(self) -> str:
        return f"error after {self.steps} step{'s' * (self.steps > 1)}"

    def find(self, result: Result) -> tuple[float, float] | None:
        mean, interval = result["result"]["by_step"][self.steps]
        return mean, interval


class Presentation(NamedTuple):
    """The accuracy in per cent at the k-th presentation of a class in a sequence."""

    k: int
    paper: str | None

    @property
    def what(self) -> str:
        return f"presentation {self.k} of 10, %"

    def find(self, result: Result) -> tuple[float, float] | None:
        found = result["by_instance"]
        return 100 * found["mean"][self.k - 1], 100 * found["interval"][self.k - 1]


class OneShot(NamedTuple):
    """The accuracy in per cent in Lake's one-shot trials, 20 characters of one alphabet."""

    paper: str | None
    mode: str = "transductive"  # or inductive, or turned: transductive, averaged over quarter turns

    @property
    def what(self) -> str:
        mode = "transductive, mean over quarter turns" if self.mode == "turned" else self.mode
        return f"20 characters of one alphabet, 1 shot, {mode}, %"

    def find(self, result: Result) -> tuple[float, float] | None:
        lake = result["lake"]
        found = lake if self.mode == lake["query_mode"] else lake.get(self.mode)
        return found and (100 * found["accuracy"], 100 * found["interval"])


class Verification(NamedTuple):
    """The percentage of pairs that are told right to be, or not to be, of one character."""

    paper: str | None = None
    what: str = "pairs of one alphabet, verification, %"

    def find(self, result: Result) -> tuple[float, float] | None:
        found = result["lake"]["verification"]
        return 100 * found["accuracy"], 100 * found["interval"]


class Descent(NamedTuple):
    """The accuracy in per cent of gradient descent from the initialisation that a learned optimiser starts from."""

    steps: str
    paper: str | None = None

    @property
    def what(self) -> str:
        return f"5 ways, 1 shot, gradient descent of {self.steps} steps from its initialisation, %"

    def find(self, result: Result) -> tuple[float, float] | None:
        found = result["against_sgd"][f"sgd_of_{self.steps}_steps".replace(" ", "_")]
        return 100 * found["mean"], 100 * found["interval"]


class Lead(NamedTuple):
    """How many points the learned optimiser is ahead of that descent, over the same episodes."""

    steps: str
    paper: str | None = None

    @property
    def what(self) -> str:
        return f"5 ways, 1 shot, lead over gradient descent of {self.steps} steps, points"

    def find(self, result: Result) -> tuple[float, float] | None:
        found = result["against_sgd"][f"sgd_of_{self.steps}_steps".replace(" ", "_")]["lstm_minus_sgd"]
        return 100 * found["mean"], 100 * found["interval"]


Row = Accuracy | Error | Presentation | OneShot | Verification | Descent | Lead


class Cell(NamedTuple):
    """What one training leads to.

    Attributes:
        method: as a reader calls it.
        dataset: likewise.
        train: the command that trains; `reproduce.py` adds `--seed`, `--out` and what it takes to resume.
        judge: commands that judge the run further; RUN is its folder.
        rows: the numbers, with the paper's.
        source: where these are printed.
        paper_tasks: tasks in the paper's training; None where it does not say.
        differs: what is not the paper's, and why numbers differ where they do.
    """

    method: str
    dataset: str
    train: str
    judge: tuple[str, ...]
    rows: tuple[Row, ...]
    source: str
    paper_tasks: int | None = None
    differs: str = ""


def _mann(method: str, words: str, paper: tuple[str | None, ...], source: str, differs: str = "") -> Cell:
    """A sequence of 5 classes x 10 drawings; `paper` at presentations 1, 2, 3, 5 and 10."""
    rows = tuple(Presentation(k, value) for k, value in zip((1, 2, 3, 5, 10), paper, strict=True))
    return Cell(method, "Omniglot", f"python benchmarks/mann.py {words}", (), rows, source, 100_000, differs)


_MAML, _REPTILE = "arXiv:1703.03400, table 1", "arXiv:1803.02999, table 2"
_START = (
    "Weights and biases start uniform in ±1/√fan-in. After training, ten steps diverge on one to seven tasks in 6,000, "
    "and one of them takes a mean of 600 with it; from the start of MAML's code, truncated normals of 0.01 and zero "
    "biases, they diverge on 14 to 94 (`python benchmarks/sinusoid_init.py`). Processors that round otherwise train "
    "another network: with AVX-512, seed 0 of MAML came to 0.678 / 0.572 / 0.425 after 1 / 5 / 10 steps, without one "
    "task of 600 whose error ended infinite (`results/maml-sinusoid-avx512.json`)."
)
_OWN_SPLIT = (
    "A shorter training, and other test characters: the paper's random split cannot be drawn again from its code."
)
_REPTILES = (
    "A shorter training; ink is 1 on 0, where the code has 0 on 1; the tasks of a step start from one state of Adam "
    "and average theirs, where the code passes it along; 1,000 test episodes for 10,000."
)

_HEADS = "Heads write vectors of their own, where the paper's equation writes their keys."
_MANNS = (
    "Sixteen sequences in a step; Adam with clipped gradients, at 3e-3 until the last fifth; weights of images start "
    "four times as wide. The share takes the paper's 100,000 episodes for sequences; if they were steps, it is 30 %."
)
_STRENGTH = "Cosines are multiplied by 10 before reading's softmax, where the paper has them as they are."
_MANN_TABLE = "arXiv:1605.06065, table 1"
# Both were trained before the command line asked for full precision.
_TF32 = (
    "Trained on a GPU that three other trainings shared, in TF32: `JAX_DEFAULT_MATMUL_PRECISION=default` before the "
    "command."
)
_NO_PAPER = (None,) * 5

CELLS = {
    # MAML's whole budget on sinusoids.
    "maml-sinusoid": Cell(
        "MAML",
        "sinusoid",
        "jaxmeta train maml",
        (),
        (Error(1, "0.67"), Error(5, "0.38"), Error(10, "0.35")),
        "arXiv:1703.03400, the comparison with multi-task baselines",
        25 * 70_000,
        _START,
    ),
    "fomaml-sinusoid": Cell(
        "First-order MAML",
        "sinusoid",
        "jaxmeta train fomaml",
        (),
        (Error(1, None), Error(5, None), Error(10, None)),
        "no paper prints it",
        25 * 70_000,
        "Weights and biases start as those of exact MAML.",
    ),
    "reptile-sinusoid": Cell(
        "Reptile",
        "sinusoid",
        "jaxmeta train reptile",
        (),
        (Error(1, None), Error(8, None), Error(32, None)),
        "arXiv:1803.02999, figure 2, without numbers",
        30_000,
        "Settings and budget are those of its released script, whose units are tanh; the paper's are rectified.",
    ),
    "maml-omniglot-5w1s": Cell(
        "MAML",
        "Omniglot",
        "jaxmeta train maml --dataset omniglot --steps 16000",
        (),
        (Accuracy(5, 1, "98.7 ± 0.4"),),
        _MAML,
        32 * 60_000,
        _OWN_SPLIT,
    ),
    "maml-omniglot-5w5s": Cell(
        "MAML",
        "Omniglot",
        "jaxmeta train maml --dataset omniglot --shots 5 --steps 4000",
        (),
        (Accuracy(5, 5, "99.9 ± 0.1"),),
        _MAML,
        32 * 60_000,
        f"{_OWN_SPLIT} Still rising a little when it ended: 96.9 % of the queries of training episodes came out right "
        "at 2,100 steps, 98.0 % at 3,100 and 98.5 % at 4,000.",
    ),
    # Five inner steps on 20 ways cost ten times as much as one on 5.
    "maml-omniglot-20w1s": Cell(
        "MAML",
        "Omniglot",
        "jaxmeta train maml --dataset omniglot --ways 20 --steps 3000",
        (),
        (Accuracy(20, 1, "95.8 ± 0.3"),),
        _MAML,
        16 * 60_000,
        f"{_OWN_SPLIT} Rising fast when it ended: 44.7 % of the queries of training episodes came out right at 1,000 "
        "steps, 53.8 % at 2,000, 65.9 % at 2,900 and 68.1 % at 3,000. First-order MAML, after as many steps from the "
        "same start, is ahead; the exact gradient's norm falls from 16.6 in the first hundred steps to 1.2, and the "
        "first-order one's stays at 0.4 to 0.5. Whether that is why was not measured.",
    ),
    "fomaml-omniglot-5w1s": Cell(
        "First-order MAML",
        "Omniglot",
        "jaxmeta train fomaml --dataset omniglot --steps 16000",
        (),
        (Accuracy(5, 1, "98.3 ± 0.5"),),
        _REPTILE,
        32 * 60_000,
        f"{_OWN_SPLIT} Still rising when it ended: 96.5 % of the queries of training episodes came out right at 12,800 "
        "steps, and 97.3 % at 16,000. Printed there as made by MAML's code with MAML's settings.",
    ),
    "fomaml-omniglot-5w5s": Cell(
        "First-order MAML",
        "Omniglot",
        "jaxmeta train fomaml --dataset omniglot --shots 5 --steps 4000",
        (),
        (Accuracy(5, 5, "99.2 ± 0.2"),),
        _REPTILE,
        32 * 60_000,
        f"{_OWN_SPLIT} Still rising when it ended: 95.3 % of the queries of training episodes came out right at 2,100 "
        "steps, and 97.6 % at 4,000.",
    ),
    "fomaml-omniglot-20w1s": Cell(
        "First-order MAML",
        "Omniglot",
        "jaxmeta train fomaml --dataset omniglot --ways 20 --steps 3000",
        (),
        (Accuracy(20, 1, "89.4 ± 0.5"),),
        _REPTILE,
        16 * 60_000,
        f"{_OWN_SPLIT} Still rising when it ended: 71.4 % of the queries of training episodes came out right at 2,000 "
        "steps, and 80.3 % at 3,000.",
    ),
    # The outer step falls to 0 over the steps taken.
    "reptile-omniglot-5w1s": Cell(
        "Reptile",
        "Omniglot",
        "jaxmeta train reptile --dataset omniglot --steps 40000",
        (
            "jaxmeta evaluate RUN --query-mode inductive --no-by-step",
            "jaxmeta evaluate RUN --shots 5",
            "jaxmeta evaluate RUN --shots 5 --query-mode inductive --no-by-step",
        ),
        (
            Accuracy(5, 1, "97.68 ± 0.04"),
            Accuracy(5, 1, "95.39", "inductive"),
            Accuracy(5, 5, "99.48 ± 0.06"),
            Accuracy(5, 5, "98.90", "inductive"),
        ),
        _REPTILE,
        5 * 100_000,
        _REPTILES,
    ),
    "reptile-omniglot-20w1s": Cell(
        "Reptile",
        "Omniglot",
        "jaxmeta train reptile --dataset omniglot --ways 20 --steps 10000",
        ("jaxmeta evaluate RUN --query-mode inductive --no-by-step",),
        (Accuracy(20, 1, "89.43 ± 0.14"), Accuracy(20, 1, "88.14", "inductive")),
        _REPTILE,
        5 * 200_000,
        f"{_REPTILES} The outer step falls to 0 over a twentieth of the paper's steps: of the last mini-batch of a "
        "10-shot training task, before its step, 89 % came out right at 5,100 steps, 92 % at 8,100 and no more after.",
    ),
    "prototypical-omniglot-1shot": Cell(
        "Prototypical Networks",
        "Omniglot",
        "jaxmeta train prototypical --dataset omniglot --ways 20 --steps 12000",
        (
            "jaxmeta evaluate RUN --ways 5",
            "jaxmeta evaluate RUN --ways 5 --shots 5",
            "jaxmeta evaluate RUN --ways 20 --shots 5",
        ),
        (Accuracy(5, 1, "98.8"), Accuracy(5, 5, "99.7"), Accuracy(20, 1, "96.0"), Accuracy(20, 5, "99.0")),
        "arXiv:1703.05175, table 4, trained on 1 shot and 60 ways",
        None,
        "Trained for 12,000 episodes, where the paper stops by the validation loss. Batch normalisation sees the "
        f"queries of a test episode, where the paper's has running statistics. {_TF32}",
    ),
    # Cosines are divided by 0.05: at the paper's 1, no class of 60 can have a probability above 0.044.
    "matching-omniglot-1shot": Cell(
        "Matching Networks",
        "Omniglot",
        "jaxmeta train matching --dataset omniglot --temperature 0.05 --steps 6000 --halve-every 900 --train-queries 3",
        ("jaxmeta evaluate RUN --shots 5", "jaxmeta evaluate RUN --ways 20"),
        (Accuracy(5, 1, "98.1"), Accuracy(5, 5, "98.9"), Accuracy(20, 1, "93.8")),
        "arXiv:1606.04080, table 1, cosine, without fine-tuning",
        None,
        "The paper tells neither optimiser nor budget. Cosines are divided by 0.05, where it has no temperature.",
    ),
    "matching-omniglot-5w1s": Cell(
        "Matching Networks, trained as those with full context",
        "Omniglot",
        "jaxmeta train matching --dataset omniglot --train-ways 5 --meta-batch 4 --steps 4000 --halve-every 700",
        (),
        (Accuracy(5, 1, None),),
        "no paper prints it: for comparison with the next row",
    ),
    "matching_fce-omniglot-5w1s": Cell(
        "Matching Networks, full context",
        "Omniglot",
        "jaxmeta train matching_fce --dataset omniglot --steps 4000 --halve-every 700 --train-queries 5",
        (),
        (Accuracy(5, 1, None),),
        "arXiv:1606.04080 reports no gain on Omniglot",
        None,
        "Trained on the same episodes as the row above, and a point better. Cosines of both are divided by 0.1, where "
        "the paper has no temperature.",
    ),
    # Classes turned one by one and four episodes in a step, for a shorter training than 1,000,000 episodes.
    "relation-omniglot-5w1s": Cell(
        "Relation Networks",
        "Omniglot",
        "jaxmeta train relation --dataset omniglot --steps 8000 --halve-every 1500 --meta-batch 4 --train-queries 10 "
        "--rotations classes",
        (),
        (Accuracy(5, 1, "99.6 ± 0.2"),),
        "arXiv:1711.06025, table 1",
        1_000_000,
        "A shorter training, with 10 queries of each class for 19 and classes turned one by one for all alike. The "
        "paper chooses its checkpoint by test classes, which no choice here has seen.",
    ),
    # A small twin on 3 x 3 blocks of 84 x 84 pixels: the paper's, on 105 x 105, takes seconds for a step on two cores.
    "siamese-omniglot": Cell(
        "Siamese networks",
        "Omniglot",
        "jaxmeta train siamese --dataset omniglot --image-size 84 --steps 36000 --meta-batch 2 --outer-lr 1e-3 "
        "--halve-every 7500",
        ("python benchmarks/lake.py RUN", "jaxmeta evaluate RUN --ways 5"),
        (
            OneShot("92.0"),
            OneShot(None, "inductive"),
            OneShot(None, "turned"),
            Verification(),
            *(Accuracy(ways, 1, None, within_groups=True) for ways in (20, 5)),
        ),
        "Koch, Zemel, Salakhutdinov 2015",
        None,
        "A smaller network, batch-normalised and without a dense layer, on smaller images, alphabets turned and "
        "mirrored whole, and a shorter training by Adam, at whose end 91 % of its own distorted trials come out "
        "right. Averaging over turns of a trial (`averaged(learner, tasks.quarter_turns)`) is not the paper's. With "
        "five runs of every alphabet (`python benchmarks/lake.py RUN --runs 100 --seed 1`) it is 87.45 ± 1.95, and "
        "averaged 89.35 ± 1.70. All drawers train, of alphabets with 20 characters or more. Runs are drawn here, one "
        "of each of 20 evaluation alphabets, where the official ones are two of each of ten: pixels alone (modified "
        "Hausdorff) err on 41.5 % of them for 38.8 % there. Other episodes too are of one alphabet, but by any "
        "drawers.",
    ),
    "mann-omniglot": _mann(
        "MANN, LRUA",
        "--steps 30000",
        ("36.4", "82.8", "91.0", "94.9", "98.1"),
        _MANN_TABLE,
        f"{_MANNS} {_STRENGTH} {_HEADS}",
    ),
    "mann-omniglot-lstm": _mann(
        "LSTM, MANN's baseline",
        "--addressing none --steps 30000",
        ("24.4", "49.5", "55.3", "63.6", "62.5"),
        _MANN_TABLE,
        f"{_MANNS} Far above the paper's; what explains it was not measured.",
    ),
    "mann-omniglot-ntm": _mann(
        "MANN, the NTM's addressing",
        "--addressing ntm --steps 30000",
        _NO_PAPER,
        "arXiv:1605.06065 compares it on strings and 15 classes alone",
        f"{_MANNS} Behind LRUA, on characters of training too, and within the LSTM's interval or little above it: it "
        "reads all slots nearly alike. The largest weight of a read is 0.0093 on average, and 0.0078 if all are equal. "
        "At step 22,600 the loss leapt from 0.5 to 1.5, and was at 0.6 again when the rate began to fall. Gradients "
        "clipped lower, and addressing that starts sharper, were not tried.",
    ),
    "mann-omniglot-feedforward": _mann(
        "MANN, LRUA, feed-forward",
        "--controller feedforward --steps 30000",
        _NO_PAPER,
        "arXiv:1605.06065 has it with strings alone",
        f"{_MANNS} {_STRENGTH} {_HEADS} Behind the LSTM as controller after as many steps, on characters of training "
        "too: there 84.3 % are right at the tenth presentation at the end.",
    ),
    "mann-omniglot-strings": _mann(
        "MANN, LRUA, strings",
        "--code strings --steps 30000",
        ("0.0", "69.5", "80.4", "88.4", "93.1"),
        "arXiv:1605.06065, table 2",
        f"{_MANNS} {_STRENGTH} {_HEADS}",
    ),
    "metanet-omniglot-5w1s": Cell(
        "MetaNet",
        "Omniglot",
        "jaxmeta train metanet --dataset omniglot --steps 16000 --halve-every 4000",
        (),
        (Accuracy(5, 1, "98.95"),),
        "arXiv:1703.00837, table 1",
        None,
        "Convolutions of 32 channels for the paper's 64; training images are turned and shifted a little; weights "
        "start as He's, fast ones near zero; keys are taken before the rectifier, and gradients are clipped. By the "
        "end, 98 % of the queries of training episodes, so changed, come out right; whether the paper's width does "
        "more was not measured.",
    ),
    "metanet-omniglot-half": Cell(
        "MetaNet, half the training",
        "Omniglot",
        "jaxmeta train metanet --dataset omniglot --steps 8000 --halve-every 2000",
        (),
        (Accuracy(5, 1, None),),
        "no paper prints it: for comparison with the next row",
    ),
    "metanet-omniglot-without-task": Cell(
        "MetaNet without task-level fast weights",
        "Omniglot",
        "python benchmarks/metanet.py --without task --steps 8000 --halve-every 2000",
        (),
        (Accuracy(5, 1, None),),
        "arXiv:1703.00837 calls it slightly worse than MetaNet",
        None,
        "Trained as the row above, and not worse: what task-level fast weights are worth does not show here.",
    ),
    "metanet-omniglot-without-example": Cell(
        "MetaNet without example-level fast weights",
        "Omniglot",
        "python benchmarks/metanet.py --without example --steps 500",
        (),
        (Accuracy(5, 1, None),),
        "no paper prints it",
        None,
        "Nothing is left that could tell it the labels of an episode.",
    ),
    # Vinyals' split, with its validation characters for the rate of gradient descent.
    "lstm_meta_learner-omniglot-5w1s": Cell(
        "LSTM meta-learner",
        "Omniglot",
        "jaxmeta train lstm_meta_learner --dataset omniglot --split vinyals --steps 20000 --halve-every 6000",
        ("jaxmeta evaluate RUN --query-mode inductive", "python benchmarks/lstm_against_sgd.py RUN"),
        (
            Accuracy(5, 1, None),
            Accuracy(5, 1, None, "inductive"),
            *(row(steps) for steps in ("as many", "any number of") for row in (Descent, Lead)),
        ),
        "Ravi, Larochelle 2017, has no Omniglot",
        None,
        "Input gates start at the sigmoid of -2 to -1 and four episodes make a step, where the paper's code has -5 to "
        "-4 and one; convolutions are strided, and a class has one query. By the end, 94 % of the queries of training "
        "episodes come out right. The LSTM takes 8 steps for the paper's 12; "
        "gradient descent has its best rate of eight, or rate and number of steps up to 100, by validation characters. "
        "Transductive: "
        f"batch normalisation sees all five queries. {_TF32} The first row was judged there too: "
        "on CPU, as the others were, it is 92.80.",
    ),
}
