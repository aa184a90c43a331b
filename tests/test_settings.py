"""
Flags go before the environment, that before the file, that before the defaults; each mistake is one clear sentence.
"""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import ConfigurationError
from proxy.settings import Settings, key_digest, load_settings, multiprocess_warning

DIGEST = hashlib.sha256(b"secret").hexdigest()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test begins in an empty folder, without variables of ours."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"JOULEPROXY_{name.upper()}", raising=False)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def mistake(file: Path | None = None, **flags: Any) -> str:
    """The message of settings that cannot work."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(file, **flags)
    return str(caught.value)


def test_works_without_any_setting() -> None:
    """The defaults are a vLLM beside the proxy and listeners that nobody else reaches."""
    settings = load_settings(None)

    assert [(b.url, b.name) for b in settings.backends] == [("http://127.0.0.1:8000", "127.0.0.1:8000")]
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert (settings.admin_host, settings.admin_port) == ("127.0.0.1", 9464)
    assert (settings.meter, settings.policy, settings.tenants) == ("auto", "weighted", ())
    assert settings.ledger == "sqlite:///jouleproxy.db"


def test_flags_over_environment_over_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each source fills what the ones before it left open; a flag that is None was not given."""
    file = write(tmp_path / "own.toml", 'port = 1\nadmin_port = 1\nhost = "::1"\npolicy = "time"')
    monkeypatch.setenv("JOULEPROXY_PORT", "2")
    monkeypatch.setenv("JOULEPROXY_ADMIN_PORT", "2")

    settings = load_settings(file, port=3, host=None)

    assert (settings.port, settings.admin_port, settings.host, settings.policy) == (3, 2, "::1", "time")


def test_file_in_the_folder_is_found(tmp_path: Path) -> None:
    """jouleproxy.toml needs no flag, and one that is named goes before it."""
    write(tmp_path / "jouleproxy.toml", "port = 11")

    assert load_settings(None).port == 11
    assert load_settings(write(tmp_path / "other.toml", "port = 12")).port == 12


def test_one_run_does_not_remember_the_file_of_another(tmp_path: Path) -> None:
    """The file is this call's."""
    load_settings(write(tmp_path / "once.toml", "port = 11"))

    assert load_settings(None).port == 8080


@pytest.mark.parametrize(
    "given",
    [
        "http://a:1, http://b:2/v1/ ,",
        '[{"url":"http://a:1","meter":"recorded:a"},{"url":"http://b:2/v1","meter":"recorded:b"}]',
    ],
)
def test_backends_as_text(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """URLs with commas or JSON; a trailing /v1, as OpenAI clients want it, does no harm."""
    monkeypatch.setenv("JOULEPROXY_BACKENDS", given)
    if not given.startswith("["):
        assert "several backends" in mistake()
        return
    assert [backend.url for backend in load_settings(None).backends] == ["http://a:1", "http://b:2"]


def test_backends_and_tenants_as_tables(tmp_path: Path) -> None:
    """The file's form: names, GPUs and keys of each."""
    file = write(
        tmp_path / "full.toml",
        f"""
        [[backends]]
        url = "http://a:1/v1"
        gpus = ["GPU-1", "GPU-2"]
        [[backends]]
        url = "https://b/base"
        name = "big"
        meter = "rapl"
        api_key = "k"
        [[tenants]]
        name = "acme"
        key_sha256 = ["{DIGEST.upper()}"]
        """,
    )

    settings = load_settings(file)

    assert [(b.name, b.url, b.gpus) for b in settings.backends] == [
        ("a:1", "http://a:1", ("GPU-1", "GPU-2")),
        ("big", "https://b/base", ()),
    ]
    assert settings.tenants[0].key_sha256 == (key_digest("secret"),)
    assert settings.backends[1].api_key is not None
    assert settings.backends[1].api_key.get_secret_value() == "k"


def test_a_key_is_not_shown(tmp_path: Path) -> None:
    """Printing the settings does not print what is secret."""
    file = write(tmp_path / "k.toml", '[[backends]]\nurl = "http://a:1"\napi_key = "very-secret"')

    assert "very-secret" not in repr(load_settings(file))


def test_a_backends_name_is_without_its_password(tmp_path: Path) -> None:
    """The name is a label and stands in every record."""
    file = write(tmp_path / "u.toml", '[[backends]]\nurl = "http://user:very-secret@host:8000/v1"')

    (backend,) = load_settings(file).backends

    assert (backend.name, backend.url) == ("host:8000", "http://user:very-secret@host:8000")


def test_settings_do_not_change() -> None:
    """What was checked stays as it was checked."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings(None).port = 1  # type: ignore[misc]


def test_none_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable can say that rows are kept for ever."""
    monkeypatch.setenv("JOULEPROXY_RETENTION_DAYS", "none")

    assert load_settings(None).retention_days is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "prot: Extra inputs are not permitted"),
        ("port = 70000", "port: Input should be less than or equal to 65535"),
        ('port = "x"', "port: Input should be a valid integer, unable to parse string as an integer"),
        ('policy = "fair"', "policy: Input should be 'weighted', 'tokens', 'output-tokens' or 'time'"),
        ("sample_period_ms = 1", "sample_period_ms: Input should be greater than or equal to 5"),
        ("backends = []", "at least one backend is needed: --backend http://127.0.0.1:8000"),
        ('backends = "localhost:8000"', "backends.0.url: a backend's url looks like http://127.0.0.1:8000, not "),
        ('[[backends]]\nurl = "http://a"\ngpu = ["x"]', "backends.0.gpu: Extra inputs are not permitted"),
        ('[[backends]]\nname = "a"', "backends.0.url: Field required"),
        ('[[tenants]]\nname = "a"\nkey_sha256 = []', "tenants.0.key_sha256: Tuple should have at least 1 item"),
        ('[[tenants]]\nname = "a"\nkey_sha256 = ["secret"]', "key_sha256 holds 64 hex digits each"),
        (
            f'[[tenants]]\nname = "a"\nkey_sha256 = ["{DIGEST}"]\n[[tenants]]\nname = "b"\nkey_sha256 = ["{DIGEST}"]',
            "tenants: a and b have the same key; who would pay?",
        ),
        ('step_log_mode = "rw-rw----"', "step_log_mode: String should match pattern '^0?[0-7]{3}$'"),
        ("step_log_mode = 660", "step_log_mode: Input should be a valid string"),
        ('log_level = "loud"', "log_level: Input should be 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_each_mistake_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    """It names the setting and says what it should be; no stack trace, no second line."""
    told = mistake(write(tmp_path / "wrong.toml", text))

    assert message in told
    assert len(told.splitlines()) == 1


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    """Two mistakes are two lines."""
    told = mistake(write(tmp_path / "wrong.toml", 'port = -1\nmax_body_mb = 0\nlog_level = "info"'))

    assert [line.split(":")[0] for line in told.splitlines()] == ["port", "max_body_mb"]


def test_the_same_energy_twice(tmp_path: Path) -> None:
    """Backends that would be charged for the same device are refused, whichever way it is said."""
    one, two = '[[backends]]\nurl = "http://a"\n', '[[backends]]\nurl = "http://b"\n'

    both_open = mistake(write(tmp_path / "1.toml", one + two))
    same_gpu = mistake(write(tmp_path / "2.toml", f'{one}gpus = ["G"]\n{two}gpus = ["G"]'))
    same_name = mistake(write(tmp_path / "3.toml", f'{one}name = "x"\n{two}name = "x"'))

    assert "the same energy would count twice" in both_open
    assert same_gpu.startswith("G is claimed by a and b; energy must not count twice.")
    assert "share_gpus = true" in same_gpu
    assert "share_gpus = true" in both_open
    assert same_name == "backends need different names, these are given: x, x"


@pytest.mark.parametrize("gpus", ['gpus = ["G"]', ""], ids=["named", "all"])
def test_a_gpu_may_be_shared_by_those_who_say_so(tmp_path: Path, gpus: str) -> None:
    """Its energy is then divided between them instead of counted twice."""
    backends = f'[[backends]]\nurl = "http://a"\n{gpus}\n[[backends]]\nurl = "http://b"\n{gpus}'

    settings = load_settings(write(tmp_path / "shared.toml", f"share_gpus = true\n{backends}"))

    assert settings.share_gpus
    assert [backend.name for backend in settings.backends] == ["a", "b"]
    assert not load_settings(None).share_gpus


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and broken TOML are named with their file."""
    assert mistake(tmp_path / "none.toml") == f"the settings file {tmp_path}/none.toml does not exist"
    broken = write(tmp_path / "broken.toml", "port = \n")
    assert mistake(broken).startswith(f"{broken}: ")


def test_unreadable_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken JSON in a variable is one sentence that names the variable's setting."""
    monkeypatch.setenv("JOULEPROXY_BACKENDS", "[{")

    assert "backends" in mistake()


def test_prometheus_multiprocess_folder_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM sets it for itself."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    assert multiprocess_warning() is None
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "x")
    assert "PROMETHEUS_MULTIPROC_DIR" in (multiprocess_warning() or "")
