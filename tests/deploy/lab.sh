#!/bin/bash
# A lab of machines on one machine. A machine is a set of namespaces of its own (net, mount, pid, uts, ipc): its own
# network, its own /tmp, /run, /dev/shm and home, no shared memory with the others, and sees no process but its own.
#
#   lab.sh client VENV ROOT NAME=RESOURCES...    the operator's machine, 10.77.0.1; makes the others, says "ready"
#   lab.sh host VENV NUMBER NAME RESOURCES KEY   a machine that sshd answers for, 10.77.0.NUMBER
#
# Everything hangs from the client's namespaces: when its process is killed, nothing is left to undo.
set -euo pipefail
NAMESPACES="--net --mount --pid --uts --ipc --fork --kill-child --mount-proc --propagation private"
NET=10.77.0

furnish() { # NAME ADDRESS KEPT...: own places; of /tmp only the KEPT folders show through
  local name=$1 address=$2 path
  shift 2
  mount -t tmpfs tmpfs /run
  mkdir -p /run/kept /run/home/.ssh /run/sshd
  chmod 700 /run/home /run/home/.ssh
  for path in "$@"; do
    [[ $path == /tmp/* ]] && mkdir -p "/run/kept$path" && mount --bind "$path" "/run/kept$path"
  done
  mount -t tmpfs -o mode=1777 tmpfs /tmp
  for path in "$@"; do
    [[ $path == /tmp/* ]] && mkdir -p "$path" && mount --bind "/run/kept$path" "$path"
  done
  mount -t tmpfs -o size=1g tmpfs /dev/shm
  hostname "$name"
  printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" > /run/hosts
  mount --bind /run/hosts /etc/hosts
  sed 's#^\(root:.*\):/root:#\1:/run/home:#' /etc/passwd > /run/passwd  # ssh takes the home from here
  mount --bind /run/passwd /etc/passwd
  ip link set lo up
}

host() {
  local venv=$1 number=$2 name=$3 resources=$4 key=$5
  furnish "$name" "$NET.$number" "$venv"
  mount --bind -o ro "$venv" "$venv"
  mkdir /run/home/sparkpool
  ln -s "$venv" /run/home/sparkpool/.venv
  echo "$resources" > /run/home/resources.json
  echo "export UCX_TLS=tcp" > /run/home/.bashrc
  echo "$key" > /run/home/.ssh/authorized_keys
  ssh-keygen -q -t ed25519 -N '' -f /run/hostkey
  until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
  ip addr add "$NET.$number/24" dev eth0
  ip link set eth0 up
  ip route add default via "$NET.1"  # Ray asks which way out there is, to find its own address
  exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run/home \
    /usr/sbin/sshd -D -E /run/sshd.log -f /dev/null -h /run/hostkey -o ListenAddress="$NET.$number" -o PidFile=none \
    -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no \
    -o StrictModes=no -o UseDNS=no -o UsePAM=no -o MaxStartups=100 -o MaxSessions=100
}

client() {
  local venv=$1 root=$2 number=1 key keeper machine one
  shift 2
  furnish client "$NET.1" "$root" "$venv"
  ip link add br0 type bridge
  ip addr add "$NET.1/24" dev br0
  ip link set br0 up
  echo 1 > /proc/sys/net/ipv4/ip_forward
  ip route add unreachable default  # there is nothing out there, and whoever asks is told at once
  ssh-keygen -q -t ed25519 -N '' -f /run/home/.ssh/id_ed25519
  key=$(cat /run/home/.ssh/id_ed25519.pub)
  for one in "$@"; do
    number=$((number + 1))
    # shellcheck disable=SC2086
    unshare $NAMESPACES bash "$0" host "$venv" $number "${one%%=*}" "${one#*=}" "$key" &
    keeper=$!
    until machine=$(cat "/proc/$keeper/task/$keeper/children") && machine=${machine// /} && [[ -n $machine ]]; do
      sleep 0.02
    done
    ip link add "v$number" type veth peer name eth0 netns "$machine"
    ip link set "v$number" master br0 up
  done
  for ((one = 2; one <= number; one++)); do
    until (exec 3<> "/dev/tcp/$NET.$one/22") 2> /dev/null; do sleep 0.1; done
  done
  echo ready
  while :; do sleep 1000 & wait $!; done  # as the first process it also reaps the orphans
}

if [[ $1 == client && $$ != 1 ]]; then
  # shellcheck disable=SC2086
  exec unshare $NAMESPACES bash "$0" "$@"
fi
"$@"
