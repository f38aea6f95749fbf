"""The Debian package: what is in it, and what installing, upgrading, removing and purging it do.

What belongs here: a package built by packaging/build-deb from a tree that has this project without the
packages it needs, and dpkg at work on it in a root of its own, where only systemd's commands that need a
running systemd are stand-ins.  What does not: the unit itself (test_service.py).
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import broker
from tests.daemon_process import PATIENCE_S

ROOT = Path(__file__).parent.parent
VENV = Path("opt/computing-broker")
UNIT = Path("usr/lib/systemd/system/broker.service")
MODULES = VENV / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
NAME = "computing-broker"

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is of Debian")
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may install what belongs to several users")


def run(*words: str | Path, **environment: str) -> str:
    """What a command prints; it must not fail."""
    done = subprocess.run(
        words, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def laid_out(tree: Path) -> Path:
    """A tree as `make deb` has it before its program is installed: an environment that is empty."""
    folders = {"DESTDIR": str(tree), "PREFIX": f"/{VENV}", "USR": "/usr", "SYSTEMD": "/usr/lib"}
    run("make", "-C", ROOT, "files", *(f"{name}={value}" for name, value in folders.items()))
    run(sys.executable, "-m", "venv", "--without-pip", tree / VENV)
    return tree


def built(tree: Path, version: str) -> Path:
    """The package of a tree, not compressed: that is what takes time."""
    run(ROOT / "packaging" / "build-deb", tree, version, tree.parent, "-Znone")
    (package,) = tree.parent.glob("*.deb")
    return package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This version, with the project's own modules as pip puts them there."""
    folder = tmp_path_factory.mktemp("package")
    tree = laid_out(folder / "tree")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    into = ["--python", str(tree / VENV / "bin" / "python")]
    run(*pip, *into, "install", "--no-deps", "--no-index", "--no-compile", wheel)
    return built(tree, broker.__version__)


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A later version, which has another module and another configuration."""
    tree = laid_out(tmp_path_factory.mktemp("newer") / "tree")
    (tree / MODULES / "another.py").write_text("NEW = True\n")
    configuration = tree / "etc" / "broker" / "broker.toml"
    configuration.write_text("# of the later version\n" + configuration.read_text())
    return built(tree, "99.1rc2")


@pytest.fixture
def unpacked(package: Path, tmp_path: Path) -> Path:
    run("dpkg-deb", "--extract", package, tmp_path / "unpacked")
    return tmp_path / "unpacked"


# ---------------------------------------------------------------- what is in it


def test_what_the_package_says_of_itself(package: Path, newer: Path, tmp_path: Path) -> None:
    architecture = run("dpkg", "--print-architecture").strip()
    assert package.name == f"{NAME}_{broker.__version__}_{architecture}.deb"
    major, minor = sys.version_info[:2]
    depends = run("dpkg-deb", "--field", package, "Depends")
    assert f"python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1})" in depends
    run("dpkg-deb", "--control", package, tmp_path)
    assert (tmp_path / "conffiles").read_text() == "/etc/broker/broker.toml\n"
    assert "@" not in re.sub(r"<\S+@\S+>", "", (tmp_path / "control").read_text())
    # a release candidate comes before its release
    version = run("dpkg-deb", "--field", newer, "Version").strip()
    run("dpkg", "--compare-versions", version, "lt", "99.1")
    run("dpkg", "--compare-versions", version, "gt", "99.0")


def test_owners_and_modes(package: Path) -> None:
    lines = [line.split(maxsplit=5) for line in run("dpkg-deb", "--contents", package).splitlines()]
    assert {owner for _, owner, *_ in lines} == {"root/root"}
    modes = {path.partition(" -> ")[0]: mode for mode, *_, path in lines}
    secret = {"./etc/broker/": "drwxr-x---", "./etc/broker/broker.toml": "-rw-r-----"}
    assert {path: modes.pop(path) for path in secret} == secret
    assert set(modes.values()) == {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx"}


def test_files_that_debian_wants(unpacked: Path) -> None:
    doc = unpacked / "usr" / "share" / "doc" / NAME
    assert "Apache-2.0" in (doc / "copyright").read_text()
    assert f"[{broker.__version__}]" in run("zcat", doc / "changelog.gz")
    assert (unpacked / "usr" / "bin" / "broker").readlink() == Path("/") / VENV / "bin" / "broker"


def test_nothing_names_the_folder_of_the_build(package: Path, unpacked: Path) -> None:
    files = [path for path in unpacked.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".pyc" for path in files)
    maker = sys.executable.encode()  # an environment tells who made it; this one is of the tests
    for place in (package.parent, ROOT):
        assert [path for path in files if f"{place}/".encode() in path.read_bytes().replace(maker, b"")] == []
    script = (unpacked / VENV / "bin" / "broker").read_text()
    assert script.startswith(f"#!/{VENV}/bin/python")
    assert f"command = {sys.executable} -m venv" in (unpacked / VENV / "pyvenv.cfg").read_text()


def test_running_it_leaves_nothing_that_dpkg_does_not_know(unpacked: Path) -> None:
    before = set(unpacked.rglob("*"))
    program = "import broker.core.model; print(broker.__version__, broker.core.model.__cached__)"
    version, compiled = run(unpacked / VENV / "bin" / "python3", "-I", "-c", program).split()
    assert version == broker.__version__
    assert Path(compiled) in before
    assert set(unpacked.rglob("*")) == before


def test_systemd_has_nothing_to_say_about_its_unit(unpacked: Path) -> None:
    unit = unpacked / UNIT
    text = unit.read_text()
    assert "ExecStart=/usr/bin/broker serve" in text
    (page,) = re.findall(r"^Documentation=file://(\S+)$", text, re.MULTILINE)
    assert (unpacked / page.lstrip("/")).exists()
    # the program of this machine in its place, for systemd looks whether there is one
    unit.write_text(text.replace("/usr/bin/broker", str(Path(sys.executable).with_name("broker"))))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


# ---------------------------------------------------------------- installed, upgraded, removed


@dataclass(frozen=True)
class Machine:
    """A root folder in which dpkg works.  Maintainer scripts run outside and find it in DPKG_ROOT."""

    root: Path
    stubs: Path

    def dpkg(self, *words: str | Path) -> str:
        """What dpkg prints.  Questions are answered as with no terminal: keep what was changed."""
        force = "--force-script-chrootless,depends,confdef,confold"
        return run(
            "dpkg",
            f"--root={self.root}",
            f"--log={self.stubs}/dpkg.log",
            force,
            *words,
            PATH=f"{self.stubs}:{os.environ['PATH']}:/usr/sbin:/sbin",
        )

    def status(self) -> str:
        query = [
            "dpkg-query",
            f"--admindir={self.root}/var/lib/dpkg",
            "--show",
            "--showformat=${db:Status-Status}",
        ]
        return run(*query, NAME)

    def systemd(self, state: str) -> None:
        """From now on systemd runs there, and the service is in this state."""
        (self.root / "run" / "systemd" / "system").mkdir(parents=True, exist_ok=True)
        (self.stubs / "state").write_text(state)

    def asked(self) -> list[str]:
        """What systemd was asked for since the last time, without questions."""
        log = self.stubs / "asked"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def id_of_the_user(self) -> tuple[int, int]:
        (line,) = re.findall(r"^broker:.*$", (self.root / "etc" / "passwd").read_text(), re.MULTILINE)
        _, _, user, group, *_ = line.split(":")
        return int(user), int(group)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    root, stubs = tmp_path / "root", tmp_path / "stubs"
    for folder in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "usr/lib", "etc", "run"):
        (root / folder).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    (root / "lib").symlink_to("usr/lib")
    stubs.mkdir()
    stand_in = f"""#!/bin/sh
    if [ "$1" = is-active ]; then
        cat {stubs}/state
    elif [ -e {root / MODULES}/another.py ]; then
        echo "$* (files of the later version)" >> {stubs}/asked
    else
        echo "$*" >> {stubs}/asked
    fi
    """
    for command in ("systemctl", "deb-systemd-invoke"):
        (stubs / command).write_text(stand_in)
        (stubs / command).chmod(0o755)
    return Machine(root, stubs)


@as_root
def test_a_first_installation_is_ready_to_be_configured(machine: Machine, package: Path) -> None:
    machine.systemd("inactive")
    machine.dpkg("--install", package)
    assert machine.status() == "installed"
    user, group = machine.id_of_the_user()
    expected = {
        "etc/broker": (0o750, 0, group),
        "etc/broker/broker.toml": (0o640, 0, group),
        "etc/broker/credentials": (0o700, 0, 0),
        "var/lib/broker": (0o700, user, group),
    }
    found = {path: (machine.root / path).stat() for path in expected}
    assert {p: (stat.S_IMODE(s.st_mode), s.st_uid, s.st_gid) for p, s in found.items()} == expected
    # neither enabled nor started
    assert machine.asked() == ["daemon-reload"]
    assert not (machine.root / "etc" / "systemd" / "system").exists()


@as_root
def test_an_upgrade_leaves_what_is_the_operators_and_nothing_else(
    machine: Machine, package: Path, newer: Path
) -> None:
    machine.dpkg("--install", package)
    configuration = machine.root / "etc" / "broker" / "broker.toml"
    configuration.write_text("# mine\n")
    configuration.chmod(0o600)
    modules = machine.root / MODULES
    (modules / "our_policy.py").write_text("ours = True\n")
    assert (modules / "broker" / "core" / "model.py").exists()
    machine.dpkg("--install", newer)
    assert configuration.read_text() == "# mine\n"
    assert configuration.with_name("broker.toml.dpkg-dist").read_text().startswith("# of the later version\n")
    assert (modules / "our_policy.py").exists()
    assert (modules / "another.py").exists()
    assert not (modules / "broker").exists()
    assert run("dpkg", f"--root={machine.root}", "--verify", NAME).split() == [
        "??5??????",
        "c",
        "/etc/broker/broker.toml",
    ]


@as_root
@pytest.mark.parametrize("state", ["active", "activating"])
def test_no_daemon_runs_while_its_files_change(
    machine: Machine, package: Path, newer: Path, state: str
) -> None:
    machine.systemd("inactive")
    machine.dpkg("--install", package)
    machine.systemd(state)
    machine.asked()
    machine.dpkg("--install", newer)
    later = "(files of the later version)"
    assert [line for line in machine.asked() if "daemon-reload" not in line] == [
        "stop broker.service",
        f"start broker.service {later}",
    ]
    # what was stopped by hand stays so
    machine.systemd("inactive")
    machine.dpkg("--install", newer)
    assert {line.removesuffix(f" {later}") for line in machine.asked()} == {"daemon-reload"}


@as_root
def test_state_survives_everything(machine: Machine, package: Path) -> None:
    machine.systemd("active")
    machine.dpkg("--install", package)
    machine.asked()
    state = machine.root / "var" / "lib" / "broker" / "broker.db"
    secret = machine.root / "etc" / "broker" / "credentials" / "hz-1-password"
    state.write_text("runs and bills")
    secret.write_text("secret")
    wanted = machine.root / "etc" / "systemd" / "system" / "multi-user.target.wants" / "broker.service"
    wanted.parent.mkdir(parents=True)
    wanted.symlink_to(f"/{UNIT}")  # systemctl enable

    machine.dpkg("--remove", NAME)
    assert machine.asked() == ["stop broker.service", "daemon-reload"]
    assert machine.status() == "config-files"
    assert not (machine.root / VENV).exists()
    assert not (machine.root / UNIT).exists()
    assert (machine.root / "etc" / "broker" / "broker.toml").exists()

    assert "/var/lib/broker is kept" in machine.dpkg("--purge", NAME)
    assert not (machine.root / "etc" / "broker" / "broker.toml").exists()
    assert not wanted.is_symlink()
    assert (state.read_text(), secret.read_text()) == ("runs and bills", "secret")
    assert machine.id_of_the_user()


@as_root
def test_a_purge_leaves_no_empty_folders(machine: Machine, package: Path) -> None:
    machine.dpkg("--install", package)
    machine.dpkg("--purge", NAME)
    left = [machine.root / path for path in ("etc/broker", "var/lib/broker", "opt", "usr/share/doc")]
    assert [path for path in left if path.exists()] == []


@as_root
def test_it_does_not_mix_with_what_make_has_installed(machine: Machine, package: Path) -> None:
    users = machine.root / "etc" / "sysusers.d" / "broker.conf"
    users.parent.mkdir(parents=True, exist_ok=True)
    users.touch()
    with pytest.raises(AssertionError, match="make uninstall"):
        machine.dpkg("--install", package)
    assert not (machine.root / VENV).exists()
