#!/bin/bash
# The demo as a service of a real systemd, with the units of examples/deploy. To be run by `.ci/run systemd`, as root in
# a system of its own; its argument is the folder with the program and the units.
set -eu
units=/etc/systemd/system
install -D "$1/demo" /usr/local/bin/demo
cp "$1"/demo*.service "$1/demo.socket" $units/
systemd-analyze verify $units/demo*.service $units/demo.socket
systemctl daemon-reload

# A process that ends while a request is sent to it is no failure.
trap '' PIPE

unit=demo.service
port=8080

# send METHOD TARGET: fails if nobody listens; a process that ends meanwhile gives no answer.
send() {
    exec 9<>/dev/tcp/127.0.0.1/$port || return 1
    printf '%s %s HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' "$1" "$2" >&9 2>/dev/null || true
    tail -1 <&9 2>/dev/null || true
    exec 9<&-
}

get() {
    send GET "$1"
}

property() {
    systemctl show --value -p "$1" "$unit"
}

serving() {
    get /whoami | sed 's/.*"pid":\([0-9]*\).*/\1/'
}

# expect WHAT PATTERN TEXT
expect() {
    case $3 in
    $2) printf 'ok: %s: %s\n' "$1" "$3" ;;
    *)
        printf 'FAILED: %s: %s\n' "$1" "$3"
        journalctl -u "$unit" --no-pager -o cat
        exit 1
        ;;
    esac
}

systemctl start demo.service
expect 'the first generation' "*\"pid\":$(property MainPID),\"generation\":1,*" "$(get /whoami)"

systemctl reload demo.service
expect 'reload returns when the next one serves' "*\"pid\":$(property MainPID),\"generation\":2,*" "$(get /whoami)"

echo nothing >/usr/local/bin/demo.new
chmod +x /usr/local/bin/demo.new
mv /usr/local/bin/demo.new /usr/local/bin/demo
timeout 20 systemctl reload demo.service
expect 'a bad version' "*\"pid\":$(property MainPID),\"generation\":2,*" "$(get /whoami)"
expect 'the status says why' '*the last restart failed: cannot start *' "$(property StatusText)"
install "$1/demo" /usr/local/bin/demo.new
mv /usr/local/bin/demo.new /usr/local/bin/demo

get '/sleep?ms=2000' >/tmp/old &
sleep 0.3
systemctl reload demo.service
get '/sleep?ms=1500' >/tmp/new &
sleep 0.3
systemctl stop demo.service
wait
expect 'a stop waits for both generations' 'slept 2000 slept 1500' "$(cat /tmp/old) $(cat /tmp/new)"
expect 'and is a success' success "$(property Result)"

systemctl start demo.socket
expect 'the first client starts it' '*"generation":1,*' "$(get /whoami)"
systemctl reload demo.service
expect 'the socket stays' '*"generation":2,*' "$(get /whoami)"
systemctl stop demo.service
expect 'another client starts it again' '*"generation":1,*' "$(get /whoami)"
systemctl stop demo.socket demo.service

unit=demo-supervised.service
# Sooner than a service would want it.
sed -i 's/--watchdog 30/--watchdog 3/; s/^WatchdogSec=10/WatchdogSec=4/' $units/$unit
systemctl daemon-reload
systemctl start $unit
main=$(property MainPID)
first=$(serving)
expect 'the supervisor is the main process' 'different' "$([ "$main" != "$first" ] && echo different)"
expect 'the store has the listener' 1 "$(property NFileDescriptorStore)"

send POST /crash
expect 'a crash' '*"generation":2,*' "$(get /whoami)"
expect 'is none of systemd'"'"'s business' "$main 0" "$(property MainPID) $(property NRestarts)"

systemctl reload $unit
expect 'reload replaces what serves' '*"generation":3,*' "$(get /whoami)"
expect 'and not the supervisor' "$main" "$(property MainPID)"

mv /usr/local/bin/demo /usr/local/bin/demo.good
timeout 20 systemctl reload $unit
expect 'a bad version' '*"generation":3,*' "$(get /whoami)"
expect 'the status says why' '*the last restart failed: cannot start *' "$(property StatusText)"
mv /usr/local/bin/demo.good /usr/local/bin/demo

# In the queue until another one serves.
old=$(serving)
kill -STOP "$old"
expect 'the supervisor'"'"'s watchdog' 'another' "$([ "$(serving)" != "$old" ] && echo another)"
expect 'is none of systemd'"'"'s business either' "$main 0" "$(property MainPID) $(property NRestarts)"

# Nobody is refused at any time: systemd has kept the listener. `get` fails where it cannot connect.
kill -KILL "$main"
while [ "$(property NRestarts)" != 1 ]; do get /whoami >/dev/null; done
expect 'a killed supervisor is started anew' '*"generation":1,*' "$(get /whoami)"
expect 'and the store still has the listener' 1 "$(property NFileDescriptorStore)"

kill -STOP "$(property MainPID)"
while [ "$(property NRestarts)" != 2 ]; do get /whoami >/dev/null; done
expect 'systemd'"'"'s own watchdog starts it anew' '*"generation":1,*' "$(get /whoami)"

systemctl restart $unit
expect 'a restart of the unit' '*"pid":*' "$(get /whoami)"

systemctl kill --signal=SIGUSR2 --kill-whom=main $unit
main=$(property MainPID)
send POST /crash
expect 'a supervisor that has replaced itself' '*"generation":2,*' "$(get /whoami)"
expect 'is the same process' "$main" "$(property MainPID)"

send POST '/exit?code=78'
while [ "$(property ActiveState)" = active ]; do sleep 0.1; done
expect 'a wrong configuration' 'exit-code 78' "$(property Result) $(property ExecMainStatus)"

unit=demo-root.service
port=80

# The user, the groups, the capabilities and the right to get more, of the process that serves.
privileges() {
    awk '/^(Uid|Gid|Groups|Cap(Inh|Prm|Eff|Amb)|NoNewPrivs):/ { printf "%s %s%s ", $1, $2, $3 == "" ? "" : "/" $3 }' \
        "/proc/$(serving)/status"
}
id=$(id -u www-data)
none=0000000000000000
unprivileged="Uid: $id/$id Gid: $id/$id Groups: $id CapInh: $none CapPrm: $none CapEff: $none CapAmb: $none NoNewPrivs: 1 "

systemctl start $unit
main=$(property MainPID)
expect 'the supervisor is root' 'Uid: 0' "$(awk '/^Uid:/ { print $1, $2 }' "/proc/$main/status")"
expect 'the serving process is not' "$unprivileged" "$(privileges)"
send POST /crash
expect 'after a crash' '*"generation":2,*' "$(get /whoami)"
expect 'neither' "$unprivileged" "$(privileges)"
systemctl reload $unit
expect 'after a restart' '*"generation":3,*' "$(get /whoami)"
expect 'neither' "$unprivileged" "$(privileges)"
systemctl kill --signal=SIGUSR2 --kill-whom=main $unit
send POST /crash
expect 'after an upgrade' '*"generation":4,*' "$(get /whoami)"
expect 'neither' "$unprivileged" "$(privileges)"
expect 'all under one supervisor' "$main 0" "$(property MainPID) $(property NRestarts)"
kill -KILL "$main"
while [ "$(property NRestarts)" != 1 ]; do get /whoami >/dev/null; done
expect 'a killed supervisor is started again' '*"generation":1,*' "$(get /whoami)"
expect 'and its process has no privileges' "$unprivileged" "$(privileges)"
systemctl stop $unit
expect 'a stop is a success' success "$(property Result)"
