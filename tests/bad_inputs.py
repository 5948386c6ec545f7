"""Bad inputs, as a user would give them, and what has to be said of each: of test_bad_input.py."""

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import numpy as np
from PIL import Image

Setup = Callable[["World"], object]
NOBODY = "127.0.0.1:9"  # The discard port: nothing listens there.
DIGITS = ("run", "-r", "digits", "-o", "{run}")
SECRET = "planted-secret-value"


@dataclass(frozen=True, kw_only=True)
class World:
    """Where an entry plays."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "digits"


@dataclass(frozen=True, kw_only=True)
class Bad:
    """One bad input: what is given, and what has to be said of it."""

    name: str
    words: tuple[str, ...]
    needles: tuple[str, ...]  # Setting, value, remedy.
    code: int = 2
    environment: Mapping[str, str | None] = field(default_factory=dict)  # None = not set.
    setup: Setup = field(default=lambda world: None, repr=False)


def bad(name: str, *words: str, says: tuple[str, ...], **more: object) -> Bad:
    return Bad(name=name, words=words, needles=says, **more)  # type: ignore[arg-type]


def setting(name: str, override: str, *says: str, command: tuple[str, ...] = DIGITS) -> Bad:
    """A recipe that is right but for one setting."""
    return bad(name, *command, "-s", override, says=says)


# Files that are not what they should be.


def _folder_of_images(world: World, sizes: tuple[int, ...] = (8, 8), name: str = "images") -> Path:
    folder = world.folder / name
    for label, size in enumerate(sizes):
        place = folder / f"class-{label}"
        place.mkdir(parents=True)
        for number in range(6):
            pixels = np.full((size, size), 40 * number + label, np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def _images_with_a_torn_one(world: World) -> None:
    folder = _folder_of_images(world)
    file = folder / "class-0" / "3.png"
    file.write_bytes(file.read_bytes()[:40])


def _images_in_and_out(world: World) -> None:
    folder = _folder_of_images(world)
    (folder / "class-0" / "0.png").rename(folder / "stray.png")


def _zip(world: World, data: bytes) -> None:
    (world.folder / "images.zip").write_bytes(data)


def _torn_zip(world: World) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("class-0/0.png", b"x" * 1_000)
    _zip(world, packed.getvalue()[:-30])


def _npz(world: World, **arrays: np.ndarray) -> None:
    np.savez(world.folder / "data.npz", **arrays)


def _images(count: int = 30) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)


def _short_labels(world: World) -> None:
    _npz(world, images=_images(), labels=np.zeros(29, np.int64))


def _labels_out_of_range(world: World) -> None:
    _npz(world, images=_images(), labels=np.full(30, 7))


def _an_empty_class(world: World) -> None:
    _npz(world, images=_images(), labels=np.zeros(30, np.int64))


def _pickled(world: World) -> None:
    np.savez(world.folder / "data.npz", images=np.array([{"a": 1}], dtype=object))


def _text_instead(world: World) -> None:
    (world.folder / "data.npz").write_text("no archive")


def _forget_credentials(world: World) -> None:
    """Of boto's session, which holds what it has found once."""
    boto3.setup_default_session()


def _file_in_the_way(world: World) -> None:
    (world.folder / "file").write_text("not a folder")


def _recipe_file(text: str) -> Setup:
    return lambda world: (world.folder / "mine.yaml").write_text(text)


def _open_token(world: World) -> None:
    path = world.folder / "token"
    path.write_text(SECRET)
    path.chmod(0o644)


def _config(old: str, new: str) -> Setup:
    def change(world: World) -> None:
        path = world.run / "config.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def _run_file(name: str, text: str | None) -> Setup:
    def change(world: World) -> None:
        path = world.run / name
        path.unlink() if text is None else path.write_text(text)

    return change


def _torn_entry(world: World) -> None:
    path = world.folder / "runs" / "ledger" / "digits" / "000000000001.json"
    path.write_bytes(path.read_bytes()[:-9])


def _no_bundle(world: World) -> None:
    (world.folder / "bundle").mkdir()


def _private(source: str, path: str, *more: str, records: int = 9) -> tuple[str, ...]:
    """The digits recipe on private images of the caller's."""
    own = (
        f"data.private.source={source}", f"data.private.path={path}", "data.private.name=mine",
        f"data.private.num_records={records}", "data.private.num_classes=2",
        "privacy.delta=0.01", "privacy.expected_batch=4", *more,
    )  # fmt: skip
    return (*DIGITS[:3], "-o", "{folder}/other", *(w for o in own for w in ("-s", o)))


S3_HERE = {
    "AWS_ENDPOINT_URL": "{s3}", "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip
TRACKED = "tracking.uri=sqlite:///{folder}/mlflow.db"
ON_S3 = ("run", "-r", "digits", "-o", "s3://somebodys/runs/x")

COMMAND_LINE = (
    bad("no recipe", "run", says=("--recipe", "See --help")),
    bad("misspelt command", "rune", "-r", "digits", says=("rune",)),
    bad("misspelt option", "run", "-r", "digits", "--outt", "x", says=("--outt",)),
    bad("misspelt recipe", "run", "-r", "digitz", says=("no recipe 'digitz'", "digits, ")),
    bad("recipe outside the package", "run", "-r", "../errors", says=("no recipe",)),
    bad("missing recipe file", "run", "-r", "nowhere.yaml", says=("no recipe file nowhere.yaml",)),
    bad("recipe that is a picture", "run", "-r", "{folder}/mine.yaml", says=("mine.yaml", "text"),
        setup=lambda w: (w.folder / "mine.yaml").write_bytes(b"\xff\xd8\xff")),
    bad("recipe that is no YAML", "run", "-r", "{folder}/mine.yaml", says=("not YAML", "Mend it"),
        setup=_recipe_file("data: [1, 2\n")),
    bad("recipe with a key twice", "run", "-r", "{folder}/mine.yaml",
        says=("'seed' twice", "line 2", "Keep one"), setup=_recipe_file("seed: 1\nseed: 2\n")),
    bad("recipe that is a list", "run", "-r", "{folder}/mine.yaml", says=("a mapping of settings",),
        setup=_recipe_file("- 1\n")),
    bad("recipe with a Python object", "run", "-r", "{folder}/mine.yaml", says=("not YAML",),
        setup=_recipe_file("data: !!python/object/apply:os.system ['touch pwned']\n")),
    bad("recipe without data", "run", "-r", "{folder}/mine.yaml",
        says=("must give data", "as digits"),
        setup=_recipe_file("privacy: {epsilon: 1, delta: 1e-5}\n")),
    bad("generate from nothing", "generate", says=("--model", "--recipe", "neither")),
    bad("generate from both", "generate", "-r", "digits", "-m", "x", says=("both",)),
    bad("status of nothing", "status", "{folder}/nothing", says=("nothing",)),
    bad("unknown audit profile", "audit", "-r", "digits", "--profile", "fast", says=("fast",)),
    bad("release without a signer", "release", "-r", "digits", "--key", "k", says=("--signer",)),
    bad("job into a folder of one node", "submit", "run", "-r", "digits", "-o", "here",
        says=("--out here", "s3://")),
    bad("job with a variable that is not set", "submit", "--env", "NOT_SET", "run",
        says=("--env NOT_SET", "NOT_SET=VALUE")),
)  # fmt: skip

CONFIGURATION = (
    setting("override without a value", "seed", "a.b=value", "'seed'"),
    setting("override without a name", "=3", "a.b=value"),
    setting("override that is no YAML", "seed=[1", "seed=[1", "not YAML"),
    setting("unknown key", "privacy.epsilom=3", "privacy.epsilom", "Did you mean privacy.epsilon?"),
    setting("unknown section", "traning.mode=late", "traning", "Did you mean train"),
    setting("unknown key in a list", "data.public.0.cuont=3", "cuont", "data.public.count?"),
    setting("unknown key that is nearly one", "train.learning_rates=3", "train.learning_rate?"),
    setting("unknown key two levels down", "evaluation.classifiers.step=3", "classifiers.steps?"),
    setting("setting inside a number", "seed.x=1", "seed", "no settings inside"),
    setting("place beyond a list", "data.public.7.count=1", "data.public", "'7'", "0..0"),
    setting("text for a number", "privacy.steps=many", "privacy.steps", "'many'", "integer"),
    setting("list for a number", "seed=[1, 2]", "seed", "[1, 2]", "integer"),
    setting("fraction for a count", "runtime.workers=1.5", "runtime.workers", "1.5", "integer"),
    setting("text for a switch", "runtime.debug=perhaps", "runtime.debug", "perhaps", "boolean"),
    setting("unknown method", "method=rapidd", "method", "'rapidd'", "'rapid'"),
    setting("epsilon 0", "privacy.epsilon=0", "epsilon", "positive", "got 0", "usual"),
    setting("negative epsilon", "privacy.epsilon=-1", "epsilon", "positive", "-1"),
    setting("epsilon that is no number", "privacy.epsilon=.nan", "epsilon", "positive", "nan"),
    setting("infinite epsilon", "privacy.epsilon=.inf", "epsilon", "finite", "inf"),
    setting("delta above 1/N", "privacy.delta=0.01", "delta=0.01", "1 / num_records"),
    setting("delta 1", "privacy.delta=1", "delta", "(0, 1)", "1"),
    setting("batch above N", "privacy.expected_batch=2000", "expected_batch=2000", "1432"),
    setting("nothing to solve", "privacy.noise_multiplier=1", "noise_multiplier=1", "null"),
    setting("two things to solve", "privacy.steps=null", "steps", "noise_multiplier"),
    setting("prior share above 1", "privacy.prior_share=2", "prior_share", "[0, 1]", "2"),
    setting("no prior to sample from", "privacy.prior_share=0", "sampling.source", "prior"),
    setting("negative reserve", "privacy.reserve_steps=-1", "reserve_steps", "-1"),
    setting("no workers", "runtime.workers=0", "runtime.workers=0", "greater than or equal to 1"),
    setting("unit without a group column", "privacy.unit=group", "privacy.unit", "group_column"),
    setting("images of a group alone", "train.images_per_group=2", "images_per_group is 2",
            "'record'", "multiplicity"),
    setting("query step off the schedule", "split.query_step=2000", "split.query_step", "2000",
            "1000"),
    setting("split above query", "split.split_step=900", "split.split_step", "900", "720"),
    setting("share of references 1", "data.reference_share=1", "data.reference_share", "1"),
    setting("nothing held out", "data.private.held_out_share=0", "held_out_share", "(0, 1)", "0.2"),
    setting("no public source", "data.public=[]", "data.public", "[]"),
    setting("no public image", "data.public.0.count=0", "count must be positive", "got 0"),
    setting("network that does not fit", "network.patch=3", "network.patch", "= 6", "smaller"),
    setting("unknown subset of the network", "train.trainable=heads", "train.trainable", "heads"),
    setting("clusters above images", "knowledge_base.kmeans_images=5", "kmeans_images=5", "Raise"),
    setting("learning rate 0", "train.learning_rate=0", "train.learning_rate", "positive"),
    setting("private set that is public too", "data.public.0={source: digits}", "shares files",
            "Name a public source"),
    bad("method with another's settings", *DIGITS, "-s", "method=dpdm", "-s", "train.mode=late",
        says=("Method dpdm", "train.mode must be 'full'", "Use method rapid")),
    setting("sweep without a promise it can keep", "sweep.trials=0", "sweep.trials", "0",
            command=("sweep", "-r", "digits", "-o", "{folder}/sweep")),
)  # fmt: skip

DATA = (
    setting("wrong N", "data.private.num_records=1431", "num_records=1431", "1432",
            command=("run", "-r", "digits", "-o", "{folder}/other")),
    setting("wrong number of classes", "data.private.num_classes=9", "num_classes=9", "Declare 10",
            command=("run", "-r", "digits", "-o", "{folder}/other")),
    setting("unknown source", "data.private.source=digitz", "digitz", "Use one of"),
    setting("source that is not below the root", "data.private.source=pneumonia", "pneumonia",
            "data.root", command=("run", "-r", "digits", "-o", "{folder}/other")),
    bad("missing folder", *_private("folder", "{folder}/nowhere"),
        says=("nowhere", "does not exist", "Correct the path")),
    bad("folder without an image", *_private("folder", "{folder}/runs"), says=("no image", ".png")),
    bad("images in and out of classes", *_private("folder", "{folder}/images"),
        says=("inside and outside", "Move them"), setup=_images_in_and_out),
    bad("mixed sizes", *_private("folder", "{folder}/images"), says=("not 8x8", "resize"),
        setup=lambda w: _folder_of_images(w, (8, 9))),
    bad("torn image", *_private("folder", "{folder}/images"),
        says=("position 3", "Replace or remove"), setup=_images_with_a_torn_one),
    bad("torn zip", *_private("folder", "{folder}/images.zip"), says=("images.zip", "Fetch it"),
        setup=_torn_zip),
    bad("zip that is text", *_private("folder", "{folder}/images.zip"), says=("s.zip", "Fetch"),
        setup=lambda w: _zip(w, b"no archive")),
    bad("fewer labels than images", *_private("npz", "{folder}/data.npz"),
        says=("30 images and 29 labels", "Fetch"), setup=_short_labels),
    bad("label beyond the classes", *_private("npz", "{folder}/data.npz", records=22),
        says=("outside 0..1", "num_classes=2"), setup=_labels_out_of_range),
    bad("empty class", *_private("npz", "{folder}/data.npz", records=22),
        says=("class 1", "has no image"), setup=_an_empty_class),
    bad("pickled objects", *_private("npz", "{folder}/data.npz"),
        says=("plain arrays", "savez"), setup=_pickled),
    bad("npz that is text", *_private("npz", "{folder}/data.npz"), says=("plain arrays", "savez"),
        setup=_text_instead),
    bad("missing npz", *_private("npz", "{folder}/nowhere.npz"), says=("nowhere.npz", "Correct")),
    bad("no array of groups", *_private("npz", "{folder}/data.npz", "privacy.unit=group",
        "data.private.group_column=patient", "data.private.num_groups=5"),
        says=("'patient'", "images, labels"),
        setup=lambda w: _npz(w, images=_images(), labels=np.arange(30) % 2)),
    setting("class names of other classes", "data.private.class_names=[a, b]", "class_names",
            "num_classes=10"),
)  # fmt: skip

STORAGE = (
    bad("out below a file", "run", "-r", "digits", "-o", "{folder}/file/run",
        says=("/file cannot be written", "Choose another --out"), setup=_file_in_the_way),
    bad("ledger below a file", "run", "-r", "digits", "-o", "{folder}/other", "-s",
        "runtime.ledger_dir={folder}/file/ledger",
        says=("file/ledger", "cannot be written", "runtime.ledger_dir"), setup=_file_in_the_way),
    bad("storage of an unknown kind", "run", "-r", "digits", "-o", "gs://bucket/run", "-s", TRACKED,
        says=("gs://bucket/run", "s3://bucket/prefix")),
    bad("bucket without a tracking server", *ON_S3, says=("tracking.uri", "local --out"),
        environment=S3_HERE),
    bad("no such bucket", "run", "-r", "digits", "-o", "s3://nobodys/runs/x", "-s", TRACKED,
        says=("s3://nobodys/runs/x", "does not answer", "Check the bucket"), environment=S3_HERE),
    bad("no credentials", *ON_S3, "-s", TRACKED,
        says=("somebodys", "credentials", "AWS_"), environment={
        **S3_HERE, "AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None,
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "{folder}/none",
        "AWS_CONFIG_FILE": "{folder}/none"}, setup=_forget_credentials),
    bad("endpoint where nobody is", *ON_S3, "-s", TRACKED,
        says=("does not answer", NOBODY, "endpoint"),
        environment={**S3_HERE, "AWS_ENDPOINT_URL": f"http://{NOBODY}"}),
    bad("endpoint that is no address", *ON_S3, "-s", TRACKED, says=("does not answer", "endpoint"),
        environment={**S3_HERE, "AWS_ENDPOINT_URL": "somewhere"}),
    bad("data in a bucket that is not there", "run", "-r", "digits", "-o", "{folder}/other", "-s",
        "data.root=s3://nobodys/data", "-s", "data.private.source=mnist",
        says=("s3://nobodys/data", "does not answer"), environment=S3_HERE),
    bad("data that the bucket lacks", "run", "-r", "digits", "-o", "{folder}/other", "-s",
        "data.root=s3://somebodys/data", "-s", "data.private.source=mnist",
        says=("mnist", "data.root=s3://somebodys/data", "Copy its folder"), environment=S3_HERE),
)  # fmt: skip

RUNS = (
    setting("another budget in a begun run", "privacy.epsilon=5", "privacy.epsilon=10.0", "5.0",
            "--out"),
    setting("another seed in a begun run", "seed=7", "seed=0", "7", "--out"),
    setting("another ledger of a begun run", "runtime.ledger_dir={folder}/elsewhere",
            "runtime.ledger_dir", "--out"),
    bad("run of another version", *DIGITS, says=("other settings", "Use another --out"),
        setup=_config("reserve_steps: 2", "reserve_stepz: 2")),
    bad("config of a run that is no YAML", *DIGITS, says=("config.yaml is not YAML",),
        setup=_config("method: rapid", "method: [rapid")),
    bad("config of a run that is gone", *DIGITS, says=("config.yaml", "Restore"), code=1,
        setup=_run_file("config.yaml", None)),
    bad("name of a run that is torn", *DIGITS, says=("run.json is torn", "Restore"), code=1,
        setup=_run_file("run.json", '{"run": "dig')),
    bad("marker of a stage that is torn", *DIGITS, says=("pretrain.json is torn", "Delete it"),
        code=1, setup=_run_file("stages/pretrain.json", '{"done": tr')),
    bad("torn ledger", "ledger", "verify", "-r", "digits", "-o", "{run}", code=1,
        says=("000000000001.json", "torn"), setup=_torn_entry),
    bad("torn ledger below a run", *DIGITS, code=1, says=("000000000001.json", "torn"),
        setup=_torn_entry),
    bad("head that the ledger never had", "ledger", "verify", "-r", "digits", "-o", "{run}",
        "--head", "0" * 64, code=1, says=("0000000000000000", "cut off", "Bring back")),
    bad("stage before its own", "train", "-r", "digits", "-o", "{run}",
        says=("Stage train needs", "pretrain", "Run `rapid-dist run`")),
    bad("evaluate of nothing", "generate", "-r", "digits", "-o", "{run}",
        says=("Stage generate needs", "pretrain")),
)  # fmt: skip

SERVERS = (
    bad("cluster that is not there", *DIGITS, says=(f"RAY_ADDRESS={NOBODY}", "unset it"),
        environment={"RAY_ADDRESS": NOBODY}),
    bad("cluster by the address of its jobs", *DIGITS, says=("RAY_ADDRESS=http", "10.0.0.5:6379"),
        environment={"RAY_ADDRESS": "http://127.0.0.1:8265"}),
    bad("jobs where nobody is", "submit", "--address", f"http://{NOBODY}", "run", "-r", "digits",
        "-o", "s3://somebodys/x", says=(NOBODY, "tunnel", "--token-file"), environment={
            "RAY_AUTH_MODE": None, "RAY_API_SERVER_ADDRESS": None}),
    bad("jobs by the address of the cluster", "submit", "--address", "10.0.0.5:6379", "run", "-r",
        "digits", "-o", "s3://somebodys/x", says=("--address 10.0.0.5:6379", "8265")),
    bad("token that is not there", "submit", "--token-file", "{folder}/none", "run", "-r", "digits",
        "-o", "s3://somebodys/x", says=("--token-file", "No such file", "leave it out")),
    bad("token that others can read", "submit", "--token-file", "{folder}/token", "run", "-r",
        "digits", "-o", "s3://somebodys/x", says=("token", "chmod 600"), setup=_open_token),
    bad("MLflow where nobody is", *DIGITS, "-s", f"tracking.uri=http://{NOBODY}", "-s",
        "runtime.backend=process", code=1, says=(NOBODY, "does not answer", "tracking.uri")),
    bad("registry where nobody is", "generate", "-m", "models:/some@released", "--tracking-uri",
        f"http://{NOBODY}", code=1, says=(NOBODY, "does not answer", "--tracking-uri")),
    bad("no registry", "generate", "-m", "models:/some@released", says=("MLFLOW_TRACKING_URI",)),
    bad("model that no registry has", "generate", "-m", "some", says=("some", "no bundle"), code=1),
    bad("bundle that is empty", "generate", "-m", "{folder}/bundle", code=1,
        says=("bundle", "checksums.json", "Fetch it again"), setup=_no_bundle),
    bad("release that was never signed", "release", "verify", "{folder}/bundle", code=4,
        says=("bundle",), setup=_no_bundle),
)  # fmt: skip

# What waits for nobody is quick, and in `make test`.
QUICK = (*COMMAND_LINE, *CONFIGURATION, *DATA, *RUNS)
TABLE = (*QUICK, *STORAGE, *SERVERS)
