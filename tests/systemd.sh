#!/bin/bash
# The demo as a service of a real systemd, with the units of examples/deploy. To be run by `.ci/run systemd`, as root in
# a system of its own; its argument is the folder with the program and the units.
set -eu
units=/etc/systemd/system
install -D "$1/demo" /usr/local/bin/demo
cp "$1/demo.service" "$1/demo.socket" $units/
systemd-analyze verify $units/demo.service $units/demo.socket
systemctl daemon-reload

get() {
    exec 9<>/dev/tcp/127.0.0.1/8080
    printf 'GET %s HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n' "$1" >&9
    tail -1 <&9
    exec 9<&-
}

property() {
    systemctl show --value -p "$1" demo.service
}

# expect WHAT PATTERN TEXT
expect() {
    case $3 in
    $2) printf 'ok: %s: %s\n' "$1" "$3" ;;
    *)
        printf 'FAILED: %s: %s\n' "$1" "$3"
        journalctl -u demo --no-pager -o cat
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
