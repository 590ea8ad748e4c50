"""A key goes only where the user lets it go, and code that comes with a model runs only if the user says so."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest

from distillctl import recipe as recipes
from distillctl.errors import RecipeError, UsageError
from distillctl.recipe import OpenAITeacher
from distillctl.teachers.openai.client import Client
from distillctl.trust import approvals, recipe_access
from tests.fixtures import project, served_project, stub_server

SECRET = "sk-very-secret-0123456789"
NOWHERE = "llm.example.invalid"
"""No resolver knows a name below .invalid."""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user with nothing approved, and a key in the environment."""
    for name in ("CI", approvals.ENVIRONMENT, "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("MY_KEY", SECRET)
    approvals.configure()
    yield tmp_path / "config"
    approvals.configure()


def _teacher(url, variable="MY_KEY"):
    return OpenAITeacher(kind="openai", model="m", base_url=url, api_key_env=variable)


def _allowed(url, variable="MY_KEY"):
    """Whether the client would send the key there."""
    os.environ.setdefault(variable, SECRET)
    try:
        approvals.require_key(_teacher(url, variable))
    except RecipeError:
        return False
    finally:
        if variable != "MY_KEY":
            os.environ.pop(variable)
    return True


# ── which host is whose ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("https://api.openai.com/v1", "OPENAI_API_KEY"),
        ("https://API.OpenAI.com/v1", "OPENAI_API_KEY"),
        ("https://api.openai.com:443/v1", "OPENAI_API_KEY"),
        ("https://api.openai.com./v1", "OPENAI_API_KEY"),
        ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
        ("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
        ("http://127.0.0.1:8000/v1", "AWS_SECRET_ACCESS_KEY"),
        ("http://127.8.9.10:8000/v1", "AWS_SECRET_ACCESS_KEY"),
        ("http://[::1]:8000/v1", "AWS_SECRET_ACCESS_KEY"),
        ("http://localhost:8000/v1", "AWS_SECRET_ACCESS_KEY"),
        ("http://LOCALHOST./v1", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_a_key_goes_to_this_machine_and_to_its_own_provider(url, variable):
    assert _allowed(url, variable)


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("https://api.openai.com/v1", "AWS_SECRET_ACCESS_KEY"),
        ("https://api.openai.com/v1", "openai_api_key"),
        ("https://api.openai.com:8443/v1", "OPENAI_API_KEY"),
        ("https://openai.com/v1", "OPENAI_API_KEY"),
        ("https://evil.api.openai.com/v1", "OPENAI_API_KEY"),
        ("https://api.openai.com.evil.example/v1", "OPENAI_API_KEY"),
        ("https://evil-api.openai.com/v1", "OPENAI_API_KEY"),
        ("https://xn--pi-7kc.openai.com/v1", "OPENAI_API_KEY"),
        ("https://evil.openai.azure.com/v1", "AZURE_OPENAI_API_KEY"),
        ("https://127.0.0.1.evil.example/v1", "OPENAI_API_KEY"),
        ("https://localhost.evil.example/v1", "OPENAI_API_KEY"),
        ("https://2130706433/v1", "OPENAI_API_KEY"),
        ("https://127.1/v1", "OPENAI_API_KEY"),
        ("https://0.0.0.0/v1", "OPENAI_API_KEY"),
        ("https://169.254.169.254/v1", "AWS_SECRET_ACCESS_KEY"),
        ("https://10.0.0.1/v1", "OPENAI_API_KEY"),
        ("https://[fe80::1]/v1", "OPENAI_API_KEY"),
    ],
)
def test_a_key_goes_nowhere_else_by_itself(url, variable):
    assert not _allowed(url, variable)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:pass@api.openai.com/v1",
        "https://api.openai.com@evil.example/v1",
        "https://evil.example\\@api.openai.com/v1",
        "https://api.openai.com\\.evil.example/v1",
        "https://аpi.openai.com/v1",  # a Cyrillic letter
        "https://ａｐｉ.openai.com/v1",
        "https://api。openai。com/v1",
        "https://münchen.example/v1",
        "https://api.open\tai.com/v1",
        "https://api.openai.com\n.evil.example/v1",
        "https://%61pi.openai.com/v1",
        "https://api.openai.com/v1#@evil.example",
        "https://api.openai.com/v1?to=evil.example",
        "https://api.openai.com:99999/v1",
        "https://api.openai.com:x/v1",
        "https://-.example/v1",
        "https://[::1/v1",
        "https:///v1",
        "ftp://api.openai.com/v1",
        "file:///etc/passwd",
        "http://llm.example/v1",
        "http://0.0.0.0:8000/v1",
        "http://host.docker.internal:8000/v1",
        "http://127.0.0.1.evil.example/v1",
    ],
)
def test_an_address_that_could_be_read_in_two_ways_or_overheard_is_refused(tmp_path, url):
    with pytest.raises(RecipeError, match="base_url") as error:
        served_project.recipe(tmp_path, url, teacher={"api_key_env": "MY_KEY"})
    assert error.value.exit_code == 3
    assert len(str(error.value).splitlines()) <= 2


def test_a_local_name_that_leads_elsewhere_gets_no_key(monkeypatch):
    elsewhere = [(2, 1, 6, "", ("192.0.2.1", 80))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: elsewhere)
    with pytest.raises(RecipeError, match="leads to another machine"):
        approvals.require_key(_teacher("http://llm.localhost:8000/v1"))


def test_the_client_is_not_made_with_a_key_that_may_not_go_out():
    with pytest.raises(RecipeError, match=r"MY_KEY goes to llm\.example\.invalid, which you have not approved"):
        Client(_teacher(f"https://{NOWHERE}/v1"))


# ── how the user approves, and what is remembered ────────────────────────────────────────────────


def _collect(folder, url=f"https://{NOWHERE}/v1", *options, variable="MY_KEY", environment=None, **sections):
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        teacher = {"api_key_env": variable, "max_retries": 0}
        served_project.recipe(folder, url, teacher=teacher, **sections)
    # Without CI: that there is no terminal has to be enough.
    return project.run("collect", recipe, "--run-dir", folder / "run", *options, CI="", **(environment or {}))


def _refused(done, approval):
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("error:") == 1
    assert f"--trust {approval} once, or export DISTILLCTL_TRUST={approval}" in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr


def _sent(done):
    """It was let go: nobody is at the address."""
    assert (done.returncode, "no connection" in done.stderr) == (5, True), done.stderr


def test_without_a_word_of_the_users_nothing_goes_out(tmp_path):
    done = _collect(tmp_path, f"https://{NOWHERE.upper()}:443/v1", "--json")
    _refused(done, f"MY_KEY@{NOWHERE}")
    assert json.loads(done.stdout)["error"]["exit_code"] == 3
    assert not (tmp_path / "run" / "collect").exists()


def test_the_flag_is_remembered_for_that_key_and_host_alone(tmp_path, home):
    _sent(_collect(tmp_path, f"https://{NOWHERE}/v1", "--trust", f"MY_KEY@{NOWHERE}"))
    file = home / "distillctl" / "trusted-keys"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().splitlines()[1:] == [f"MY_KEY@{NOWHERE}"]
    assert _allowed(f"https://{NOWHERE}:443/other")
    assert not _allowed(f"https://{NOWHERE}/v1", "AWS_SECRET_ACCESS_KEY")
    assert not _allowed(f"https://{NOWHERE}:8443/v1")
    assert not _allowed(f"https://a.{NOWHERE}/v1")
    file.write_text("# nothing any more\n")
    assert not _allowed(f"https://{NOWHERE}/v1")


def test_the_environment_approves_and_is_not_remembered(tmp_path, home, monkeypatch):
    monkeypatch.setenv("DISTILLCTL_TRUST", f"OTHER@a.example, MY_KEY@{NOWHERE.upper()}:443\nMY_KEY@[2001:DB8::1]:8443")
    assert _allowed(f"https://{NOWHERE}/v1")
    assert _allowed("https://[2001:db8::1]:8443/v1")
    assert not _allowed("https://a.example/v1")
    approvals.check_sending(_teacher(f"https://{NOWHERE}/v1"), {})
    assert not home.exists()


@pytest.mark.parametrize("word", ["1", "yes", NOWHERE, f"@{NOWHERE}", "MY_KEY@", f"MY-KEY@{NOWHERE}", "MY_KEY@*",
                                  f"MY_KEY@https://{NOWHERE}/v1", "MY_KEY@a?b", "MY_KEY@аpi.openai.com"])  # fmt: skip
def test_what_is_no_approval_is_refused_as_one(tmp_path, monkeypatch, word):
    with pytest.raises(UsageError):
        approvals.configure([word])
    monkeypatch.setenv("DISTILLCTL_TRUST", word)
    with pytest.raises(UsageError, match=r"VARIABLE@HOST|host|ASCII|address") as error:
        _allowed(f"https://{NOWHERE}/v1")
    assert error.value.exit_code == 2


@pytest.mark.parametrize("wrong", ["written by others", "a folder", "a FIFO", "no text", "no approvals", "endless"])
def test_a_file_of_approvals_that_cannot_be_relied_on_approves_nothing(home, wrong, capsys):
    file = home / "distillctl" / "trusted-keys"
    file.parent.mkdir(parents=True)
    if wrong == "a folder":
        file.mkdir()
    elif wrong == "a FIFO":
        os.mkfifo(file, 0o600)
    else:
        content = {"no text": b"\xff\xfe\0", "no approvals": b"MY_KEY\n@\n*@*\n", "endless": b"x" * (2 << 20)}
        file.write_bytes(content.get(wrong, f"MY_KEY@{NOWHERE}\n".encode()))
        file.chmod(0o602 if wrong == "written by others" else 0o600)
    assert not _allowed(f"https://{NOWHERE}/v1")
    assert ("warning" in capsys.readouterr().err) == (wrong != "no approvals")


def test_an_approval_that_cannot_be_remembered_holds_for_this_command(home, capsys):
    home.write_text("a file where the folder should be")
    approvals.configure([f"MY_KEY@{NOWHERE}"])
    approvals.check_sending(_teacher(f"https://{NOWHERE}/v1"), {})
    assert "approved for this command only" in capsys.readouterr().err
    assert _allowed(f"https://{NOWHERE}/v1")
    approvals.configure()
    assert not _allowed(f"https://{NOWHERE}/v1")


def test_a_relative_configuration_folder_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "config")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert approvals.path() == tmp_path / ".config" / "distillctl" / "trusted-keys"


def test_the_refusal_imports_neither_torch_nor_the_client(tmp_path):
    served_project.recipe(tmp_path, f"https://{NOWHERE}/v1", teacher={"api_key_env": "MY_KEY"})
    code = (
        "import sys; from distillctl.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'openai', 'transformers'} & set(sys.modules), 'imported'"
    )
    words = ["run", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(
        [project.command()[0], "-c", code, *words], capture_output=True, text=True, env=project.environment(),
        check=False,
    )  # fmt: skip
    _refused(done, f"MY_KEY@{NOWHERE}")


# ── the question ─────────────────────────────────────────────────────────────────────────────────


def _on_a_terminal(folder, answer, before=b"", **environment):
    """collect, with a terminal on which somebody types; its exit code and what it showed."""
    if not (folder / "recipe.yaml").exists():
        teacher = {"api_key_env": "MY_KEY", "max_retries": 0}
        served_project.recipe(folder, f"https://{NOWHERE}/v1", teacher=teacher)
    ours, its = pty.openpty()
    command = project.command("collect", folder / "recipe.yaml", "--run-dir", folder / "run")
    env = {**project.environment(), "CI": "", **environment}
    os.write(ours, before)
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=env, start_new_session=True)
    os.close(its)
    shown, asked, end = b"", False, time.monotonic() + 120
    while time.monotonic() < end:
        if not select.select([ours], [], [], 1)[0]:
            continue
        try:
            read = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        shown += read
        if not asked and b"[y/N]" in shown:
            asked = True
            if isinstance(answer, bytes):
                os.write(ours, answer)
            else:
                process.send_signal(answer)
    os.close(ours)
    return process.wait(60), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


@pytest.mark.slow
def test_a_yes_on_the_terminal_is_remembered(tmp_path):
    code, shown = _on_a_terminal(tmp_path, b"y\n")
    assert f"The key in MY_KEY goes to {NOWHERE}" in " ".join(shown.split())
    assert (code, shown.count("[y/N]")) == (5, 1), shown
    assert _allowed(f"https://{NOWHERE}/v1")


@pytest.mark.parametrize(
    ("answer", "code"), [(b"n\n", 3), (b"\n", 3), (b"\x04", 3), (b"maybe\n", 3), (signal.SIGINT, 130)]
)
def test_anything_else_is_a_no(tmp_path, home, answer, code):
    found, shown = _on_a_terminal(tmp_path, answer)
    assert found == code, shown
    if isinstance(answer, bytes):  # a signal while the question is being written has rich write the line again
        assert shown.count("[y/N]") == 1, shown
    assert not home.exists()


def test_what_was_typed_before_is_no_answer(tmp_path):
    code, shown = _on_a_terminal(tmp_path, b"\n", before=b"y\ny\ny\n")
    assert (code, shown.count("[y/N]")) == (3, 1), shown


def test_a_ci_job_with_a_terminal_is_not_asked(tmp_path):
    code, shown = _on_a_terminal(tmp_path, b"y\n", CI="true")
    assert (code, shown.count("[y/N]")) == (3, 0), shown


# ── what else of the environment goes to a server ────────────────────────────────────────────────


def test_no_other_key_of_the_environment_goes_along(tmp_path, monkeypatch):
    """The openai client reads more variables than the key's."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-secret")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin-secret")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-secret")
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", "hook-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: gateway-secret\nAuthorization: Bearer other-secret")
    with stub_server.serve() as stub:
        done = _collect(tmp_path, stub.url, variable="MY_KEY")
        assert done.returncode == 0, done.stderr
        assert stub.headers
        for headers in stub.headers:
            assert headers["authorization"] == f"Bearer {SECRET}"
            assert "-secret" not in json.dumps({**headers, "authorization": ""})


# ── rows of files from elsewhere ─────────────────────────────────────────────────────────────────


@pytest.fixture
def diary(tmp_path):
    """A file of the user's, which no recipe brought."""
    (tmp_path / "private").mkdir()
    served_project.rows(tmp_path / "private", 60)
    return tmp_path / "private" / "rows.jsonl"


def _link(folder, diary):
    folder.mkdir()
    (folder / "rows.jsonl").symlink_to(diary)
    return "rows.jsonl"


@pytest.mark.parametrize("kind", ["absolute", "upwards", "link"])
def test_rows_from_outside_the_recipes_folder_go_out_only_if_the_user_says_so(tmp_path, diary, kind):
    folder = tmp_path / "recipe"
    if kind == "link":
        source = _link(folder, diary)
    else:
        folder.mkdir()
        source = str(diary) if kind == "absolute" else "../private/rows.jsonl"
    data = {"source": source, "eval_rows": 20}
    done = _collect(folder, "http://gpu.example.invalid:8000/v1", variable=None, data=data)
    _refused(done, "files@gpu.example.invalid:8000")
    assert str(diary) in done.stderr
    recipe = recipes.load(folder / "recipe.yaml")
    approvals.configure(["files@gpu.example.invalid:8000"])
    approvals.check_sending(recipe.teacher, recipe_access.outside(recipe))


@pytest.mark.parametrize(("address", "variable"), [("https://api.openai.com/v1", "OPENAI_API_KEY"),
                                                  (f"https://{NOWHERE}/v1", "MY_KEY")])  # fmt: skip
def test_a_key_that_may_go_to_a_host_takes_no_files_along(tmp_path, diary, monkeypatch, address, variable):
    """Not even to the host of the key's own provider: the files are the user's, whoever owns the host."""
    monkeypatch.setenv(variable, "sk-of-nobody")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "recipe"
    folder.mkdir()
    recipe = served_project.recipe(
        folder, address, teacher={"api_key_env": variable}, data={"source": str(diary), "eval_rows": 20}
    )
    host = recipe.teacher.host
    approvals.configure([f"{variable}@{host}"])
    with pytest.raises(RecipeError, match=re.escape(str(diary))) as refused:
        approvals.check_sending(recipe.teacher, recipe_access.outside(recipe))
    assert f"--trust files@{host}" in str(refused.value.next)
    assert recipe_access.describe(recipe)["sends"]["wants_approval"] == f"files@{host}"
    approvals.configure([f"{variable}@{host}", f"files@{host}"])
    approvals.check_sending(recipe.teacher, recipe_access.outside(recipe))


def test_rows_of_the_recipes_own_folder_need_no_word(tmp_path):
    recipe = served_project.recipe(tmp_path, "http://gpu.example.invalid:8000/v1", teacher={"api_key_env": None})
    approvals.check_sending(recipe.teacher, recipe_access.outside(recipe))


@pytest.mark.parametrize(
    "file", ["/proc/self/environ", "/proc/self/status", "/sys/kernel/mm/transparent_hugepage/enabled"]
)
@pytest.mark.parametrize("place", ["data.source", "contexts.full.template_file", "a link"])
def test_what_the_kernel_shows_is_no_data(tmp_path, file, place):
    if not os.path.exists(file):
        pytest.skip("no such file here")
    reference = file
    if place == "a link":
        (tmp_path / "linked.log").symlink_to(file)
        reference, place = "linked.log", "data.source"
    sets = {
        "data.source": [f"data.source={reference}", "data.format=lines", "data.pattern='(?P<input>.*)'"],
        "contexts.full.template_file": [f"contexts.full={{template_file: {reference}}}"],
    }[place]
    served_project.recipe(tmp_path, "http://127.0.0.1:9/v1")
    done = project.run("collect", tmp_path / "recipe.yaml", *[word for one in sets for word in ("--set", one)])
    assert (done.returncode, done.stderr.count("error:")) == (3, 1), done.stderr
    assert "belongs to the operating system" in done.stderr
    assert SECRET not in done.stdout + done.stderr


# ── code ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("auto", False), ("local", False), ("127.0.0.1:6379", False), ("ray://localhost:10001", False),
        ("head:6379", True), ("ray://evil.example:10001", True), ("10.0.0.1:6379", True), ("anyscale://evil", True),
    ],
)  # fmt: skip
def test_a_cluster_elsewhere_sends_pickles_back(tmp_path, address, refused):
    collect = {"engine": "ray", "address": address}
    recipe = recipes.load(project.make(tmp_path, rows=60, collect=collect))
    if refused:
        with pytest.raises(RecipeError, match="pickles"):
            approvals.check_code(recipe)
        approvals.configure(remote_code=True)
    approvals.check_code(recipe)


CODE = """
from pathlib import Path
from transformers import {base}

Path({marker!r}).write_text("ran")

class Own({base}):
    pass
"""


@pytest.fixture(scope="module")
def with_code(tmp_path_factory):
    """A project whose teacher and student bring Python code, which the recipe lets run; the code's marks."""
    folder = tmp_path_factory.mktemp("code")
    marks = {"teacher": folder / "teacher-ran", "student": folder / "student-ran"}
    teacher, student = {"trust_remote_code": True}, {"trust_remote_code": True}
    path = project.make(folder, rows=60, data={"eval_rows": 20}, teacher=teacher, student=student)
    for side, auto, base in (
        ("teacher", "AutoModelForCausalLM", "LlamaForCausalLM"),
        ("student", "AutoConfig", "BertConfig"),
    ):
        (folder / side / "own.py").write_text(CODE.format(base=base, marker=str(marks[side])))
        config = json.loads((folder / side / "config.json").read_text())
        config |= {"auto_map": {auto: "own.Own"}}
        (folder / side / "config.json").write_text(json.dumps(config))
    return path, marks


@pytest.fixture
def modules(tmp_path):
    """Where transformers copies a model's code to."""
    return {"HF_MODULES_CACHE": str(tmp_path / "modules")}


@pytest.mark.parametrize("command", ["run", "collect"])
def test_code_of_a_model_needs_the_flag_too(with_code, tmp_path, modules, command):
    path, marks = with_code
    done = project.run(command, path, "--run-dir", tmp_path / "run", **modules)
    assert (done.returncode, done.stderr.count("error:")) == (3, 1), done.stderr
    for told in ("teacher.trust_remote_code", "student.trust_remote_code", "--trust-remote-code"):
        assert told in done.stderr
    assert not any(mark.exists() for mark in marks.values())
    assert not (tmp_path / "run" / "collect").exists()


@pytest.mark.slow
def test_a_recipe_that_does_not_mark_it_runs_no_code_whatever_the_flag(with_code, tmp_path, modules):
    path, marks = with_code
    sets = ("--set", "teacher.trust_remote_code=false", "--set", "student.trust_remote_code=false")
    done = project.run("collect", path, "--run-dir", tmp_path / "run", "--trust-remote-code", *sets, **modules)
    assert done.returncode in (0, 5), done.stderr
    assert not any(mark.exists() for mark in marks.values())


@pytest.mark.slow
def test_with_mark_and_flag_it_runs(with_code, tmp_path, modules):
    path, marks = with_code
    done = project.run("collect", path, "--run-dir", tmp_path / "run", "--trust-remote-code", **modules)
    assert done.returncode == 0, done.stderr
    assert all(mark.exists() for mark in marks.values())
    again = project.run("collect", path, "--run-dir", tmp_path / "run", **modules)
    assert again.returncode == 0, again.stderr  # fresh: nothing runs


def test_no_flag_lets_a_pickle_run(tmp_path):
    """Not even where the recipe marks the model, and the flag is there."""
    path = project.make(tmp_path, rows=60, data={"eval_rows": 20}, teacher={"trust_remote_code": True})
    (tmp_path / "teacher" / "model.safetensors").unlink()
    command = f"touch {tmp_path}/ran"
    (tmp_path / "teacher" / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(V" + command.encode() + b"\ntR.")
    done = project.run("collect", path, "--run-dir", tmp_path / "run", "--trust-remote-code")
    assert (done.returncode, done.stderr.count("error:")) == (5, 1), done.stderr
    assert "safetensors" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["auto_map", "_attn_implementation", "attn_implementation", "quantization_config"])
def test_a_new_student_takes_no_key_that_would_load_code(tmp_path, key):
    from distillctl.students import from_config

    student = {"kind": "from_config", "model_type": "bert", "tokenizer": {"vocabulary": 320}, "config": {key: "a/b"}}
    recipe = served_project.recipe(tmp_path, "http://127.0.0.1:9/v1", student=student)
    with pytest.raises(RecipeError, match=key):
        from_config.build(recipe.student, recipe, None)


# ── what a dry run shows ─────────────────────────────────────────────────────────────────────────


def test_a_dry_run_shows_what_a_recipe_reaches(with_code, diary, tmp_path, monkeypatch):
    path, _ = with_code
    template = tmp_path / "private" / "note.txt"
    template.write_text("{{ input }}")
    sets = [f"data.source={diary}", f"contexts.full={{template_file: {template}}}", "task.labels=[river, king, city]"]
    words = [word for one in sets for word in ("--set", one)]
    done = project.run("run", path, "--dry-run", "--run-dir", tmp_path / "run", *words)
    assert done.returncode == 0, done.stderr
    assert f"reads outside the recipe's folder: {diary} (data.source), {template}" in done.stdout
    assert "teacher.trust_remote_code" in done.stdout
    assert "needs --trust-remote-code" in done.stdout
    recipe = served_project.recipe(tmp_path, f"https://{NOWHERE}/v1", teacher={"api_key_env": "MY_KEY"})
    assert recipe_access.describe(recipe) == {
        "reads": {},
        "sends": {"host": NOWHERE, "key": "MY_KEY", "wants_approval": f"MY_KEY@{NOWHERE}"},
        "runs_code": {},
    }
    monkeypatch.setenv("DISTILLCTL_TRUST", f"MY_KEY@{NOWHERE}")
    assert recipe_access.describe(recipe)["sends"]["wants_approval"] is None
