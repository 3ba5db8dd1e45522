#!/usr/bin/env python3
"""A slow cluster on one machine: network namespaces ("nodes") joined by links of a given rate, and MPI ranks in them.

    cluster.py [--nodes N] [--ranks-per-node R] [--link RATE] [--map slot|node] [--program PROGRAM] -- ARGUMENTS

starts nodes x ranks-per-node processes `PROGRAM ARGUMENTS` under Open MPI. Every node is a network namespace with a
host name of its own and its share of the cores; a veth pair joins it to a bridge, and token buckets at both ends
hold each direction to RATE. Ranks of a node talk through shared memory, ranks of different nodes over TCP.

All of it lives in one PID and mount namespace of its own: whatever ends this program, SIGKILL included, ends every
process in there, and the kernel removes the nodes and links with the last one. Nothing is left outside.

Exit code: that of mpirun; 2 for wrong use; 77 where the machine cannot do this (the reason is printed).
"""

import argparse
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys

CANNOT = 77
NETWORK = "10.77.0"
PREFIX = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
SWITCH = "switch"
NAMES = "/run/netns"  # where iproute2 keeps the names of namespaces
# Token buckets: deep enough for late timers, else the rate is not reached, and no deeper: what a bucket holds after a
# pause passes at once, which no real link does.
LEAST_DEPTH = 16 << 10
DEPTH_SECONDS = 250e-6
QUEUE_SECONDS = 20e-3
LARGEST_SEGMENT = 16 << 10  # of one frame that TCP hands down: 64 KiB ones do not fit into the bucket


def cannot(what, mend):
    sys.stderr.write(f"cluster: skipped: {what}\n  mend: {mend}\n")
    sys.exit(CANNOT)


def wrong(what, mend):
    sys.stderr.write(f"cluster: {what}\n  mend: {mend}\n")
    sys.exit(2)


def parse_rate(text):
    """Bits a second of "200mbit", "1gbit"; None for "none"."""
    if text == "none":
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(kbit|mbit|gbit)", text)
    if not match or float(match.group(1)) <= 0:
        wrong(f"--link {text} is no rate", "give a number with kbit, mbit or gbit (200mbit, 1gbit), or none")
    return float(match.group(1)) * PREFIX[match.group(2)]


def parse(arguments):
    own, rest = arguments, []
    if "--" in arguments:
        at = arguments.index("--")
        own, rest = arguments[:at], arguments[at + 1:]
    parser = argparse.ArgumentParser(prog="./dev cluster", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description="MPI ranks in network namespaces joined by slow links.",
                                     epilog="example: ./dev cluster --nodes 2 --ranks-per-node 1 --link 1gbit "
                                            "-- train job.yaml")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--ranks-per-node", type=int, default=1, help="processes on a node")
    parser.add_argument("--link", default="1gbit", help="of a node, each direction: 200mbit, 1gbit, none")
    parser.add_argument("--map", choices=("slot", "node"), default="slot",
                        help="slot: neighbouring ranks share a node; node: they are on different ones")
    parser.add_argument("--program", default="build/tessera")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(own)
    options.rest = rest
    options.rate = parse_rate(options.link)
    if not 1 <= options.nodes <= 64 or not 1 <= options.ranks_per_node <= 64:
        wrong(f"{options.nodes} nodes of {options.ranks_per_node} ranks", "use 1 to 64 of each")
    if not rest:
        wrong("no command for the ranks", "put it behind two dashes: ./dev cluster -- train job.yaml")
    return options


# ---------------------------------------------------------------- outside


def check_machine(options):
    if sys.platform != "linux":
        cannot("network namespaces are Linux's", "run this on Linux")
    if os.geteuid() != 0:
        cannot("network namespaces need root", "run ./dev cluster as root, or through sudo")
    for program, package in (("ip", "iproute2"), ("tc", "iproute2"), ("unshare", "util-linux"),
                             ("nsenter", "util-linux"), ("taskset", "util-linux"), ("mpirun", "openmpi-bin")):
        if shutil.which(program) is None:
            cannot(f"{program} is not here", f"apt-get install {package}")
    version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout
    if "Open MPI" not in version:
        cannot("mpirun is not that of Open MPI, which the nodes are started with", "apt-get install openmpi-bin")
    trial = subprocess.run(["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--mount-proc", "true"],
                           capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        cannot("the kernel forbids namespaces: " + trial.stderr.strip(),
               "in a container, allow CAP_SYS_ADMIN and CAP_NET_ADMIN; elsewhere see /proc/sys/user/max_net_namespaces")
    if not os.access(options.program, os.X_OK):
        wrong(f"there is no program {options.program}", "./dev build")


def of_the_child():
    """Before it runs: a process group of its own, and its end when this process ends, however."""
    os.setpgid(0, 0)  # and no session of its own, which the scheduler would weigh on its own
    death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(death_signal, signal.SIGKILL)


def outside(options, arguments):
    check_machine(options)
    sys.stdout.flush()
    command = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc",
               "--ipc", sys.executable, os.path.abspath(__file__), "--inside"] + arguments
    inner = None
    stopped = []

    def stop(number, _frame):
        stopped.append(number)
        if inner is None:
            return
        if len(stopped) > 1:
            inner.kill()  # and with it everything in its namespaces
        else:
            os.killpg(inner.pid, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    # A group of its own: Ctrl-C comes here, and from here once to all inside.
    inner = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=of_the_child)
    code = inner.wait()
    if stopped:
        return 128 + stopped[0]
    return code if code >= 0 else 128 - code


# ---------------------------------------------------------------- inside


def run(*command, node=None):
    if node is not None:
        command = ("nsenter", f"--net={NAMES}/{node}") + command
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        what = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
        cannot(f"{' '.join(command)}: {what}", "this needs the kernel's veth, bridge and tbf, and CAP_NET_ADMIN")


def shape(node, device, rate):
    """A token bucket for what leaves by the device. After a pause as much as its depth passes at once."""
    if rate is None:
        return
    depth = max(LEAST_DEPTH, int(rate * DEPTH_SECONDS / 8))
    run("tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{int(rate)}bit", "burst", str(depth), "limit",
        str(depth + int(rate * QUEUE_SECONDS / 8)), node=node)


def make_nodes(options, folder):
    os.makedirs(NAMES, exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", NAMES)  # of this mount namespace alone
    os.mkdir(folder)
    run("ip", "netns", "add", SWITCH)
    run("ip", "-n", SWITCH, "link", "set", "lo", "up")
    run("ip", "-n", SWITCH, "link", "add", "br0", "type", "bridge")
    run("ip", "-n", SWITCH, "link", "set", "br0", "up")
    hosts = "127.0.0.1 localhost\n"
    for i in range(options.nodes):
        node, port = f"node{i}", f"port{i}"
        run("ip", "netns", "add", node)
        run("ip", "-n", node, "link", "set", "lo", "up")
        run("ip", "link", "add", "eth0", "netns", node, "type", "veth", "peer", "name", port, "netns", SWITCH)
        run("ip", "-n", node, "addr", "add", f"{NETWORK}.{i + 1}/24", "dev", "eth0")
        run("ip", "-n", SWITCH, "link", "set", port, "master", "br0")
        for where, device in ((node, "eth0"), (SWITCH, port)):
            run("ip", "-n", where, "link", "set", device, "gso_max_size", str(LARGEST_SEGMENT))
            shape(where, device, options.rate)
            run("ip", "-n", where, "link", "set", device, "up")
        hosts += f"{NETWORK}.{i + 1} {node}\n"
    path = os.path.join(folder, "hosts")
    with open(path, "w", encoding="ascii") as file:
        file.write(hosts)
    run("mount", "--bind", path, "/etc/hosts")


def cores_of(node, nodes):
    """An equal share of the cores that this process may use, as a list for taskset."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < nodes:
        return ",".join(map(str, cores))
    each = len(cores) // nodes
    return ",".join(map(str, cores[node * each:(node + 1) * each]))


def write_agent(options, folder):
    """What mpirun starts its helper on a node with, as ssh: AGENT HOST COMMAND..."""
    path = os.path.join(folder, "agent")
    cases = "".join(f"  node{i}) cores={cores_of(i, options.nodes)} ;;\n" for i in range(options.nodes))
    with open(path, "w", encoding="ascii") as file:
        file.write("#!/bin/bash\n"
                   "while [[ $1 == -* ]]; do shift; done\n"
                   "host=$1\nshift\n"
                   f"case $host in\n{cases}esac\n"
                   f'exec nsenter --net={NAMES}/"$host" unshare --uts taskset -c "$cores" '
                   'bash -c "hostname $host; $*"\n')
    os.chmod(path, 0o755)
    return path


def ranks_command(options):
    """The program, with the scheduler's weight of this session: mpirun's helpers begin sessions of their own."""
    command = [options.program] + options.rest
    try:
        with open("/proc/self/autogroup", encoding="ascii") as file:
            words = file.read().split()
    except OSError:
        words = []
    weight = words[-1] if words else "0"  # empty where a control group schedules this process, not its session
    if weight == "0":
        return command
    return ["bash", "-c", f'{{ echo {weight} >/proc/self/autogroup; }} 2>/dev/null; exec "$@"', "rank"] + command


def inside(options):
    folder = os.path.join(NAMES, "cluster")
    make_nodes(options, folder)
    agent = write_agent(options, folder)
    slots = options.ranks_per_node
    hosts = ",".join(f"node{i}:{slots}" for i in range(options.nodes))
    command = ["mpirun", "--mca", "plm_rsh_agent", agent, "--mca", "plm_rsh_no_tree_spawn", "1", "--mca",
               "oob_tcp_if_include", f"{NETWORK}.0/24", "--mca", "btl", "tcp,vader,self", "--mca",
               "btl_tcp_if_include", f"{NETWORK}.0/24", "--mca", "pml", "ob1", "--mca", "mpi_yield_when_idle", "1",
               "--mca", "orte_tmpdir_base", folder, "--bind-to", "none", "--map-by", options.map, "--host", hosts,
               "-n", str(options.nodes * slots)] + ranks_command(options)
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    first = ["nsenter", f"--net={NAMES}/node0", "unshare", "--uts", "taskset", "-c", cores_of(0, options.nodes), "bash",
             "-c", 'hostname node0; exec "$@"', "mpirun"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # mpirun has it too, and ends
    ranks = subprocess.Popen(first + command, env=environment)
    while True:  # the first process of a PID namespace has every orphan to bury
        pid, status = os.wait()
        if pid == ranks.pid:
            break
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def main():
    arguments = sys.argv[1:]
    options = parse(arguments)
    return inside(options) if options.inside else outside(options, arguments)


if __name__ == "__main__":
    sys.exit(main())
