"""How something is done on a host: here, or over ssh."""

import shlex
import subprocess


class HostFailed(Exception):
    """A command on a host failed; its text is what it said."""


def _words(host, prefix, arguments):
    program = f"{prefix}/libexec/moebius/moebius-host"
    words = [program, *arguments]
    if host.state_dir:
        words = ["env", f"MOEBIUS_STATE_DIR={host.state_dir}", *words]
    if host.address == "local":
        return words
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15",
           *host.ssh_options]
    if host.port != 22:
        ssh += ["-p", str(host.port)]
    if host.user:
        ssh += ["-l", host.user]
    # ssh joins its words into a line for the shell over there.
    return [*ssh, "--", host.address, shlex.join(words)]


def run(host, arguments, text="", prefix=None, timeout_s=None):
    """Runs `moebius-host ARGUMENTS` of the tree at `prefix` (the host's own by
    default) with `text` as its input; returns what it prints."""
    words = _words(host, prefix or host.prefix, arguments)
    try:
        done = subprocess.run(words, input=text, text=True, check=False,
                              capture_output=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise HostFailed(f"{host.name}: no answer in {timeout_s:g} s") from None
    except OSError as error:
        raise HostFailed(f"{host.name}: {error}") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise HostFailed(f"{host.name}: {said or 'failed'} "
                         f"(exit code {done.returncode})")
    return done.stdout


def follow(host, arguments):
    """The same with our own output, until it ends; returns the exit code."""
    return subprocess.run(_words(host, host.prefix, arguments), check=False,
                          stdin=subprocess.DEVNULL).returncode
