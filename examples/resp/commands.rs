//! The commands about keys, as pure functions of the store: arguments in, reply out. The patterns of
//! slices check how many arguments there are.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::protocol::{Failure, Reply, integer};
use crate::store::{End, SetOptions, Store};

/// Executes the command `name`, in capital letters.
pub(crate) fn execute(store: &Store, name: &[u8], args: &[Bytes]) -> Result<Reply, Failure> {
    Ok(match (name, args) {
        (b"GET", [key]) => store.get(key)?.map_or(Reply::Nil, Reply::Bulk),
        (b"SET", [key, value, options @ ..]) => {
            match store.set(key, value, set_options(options)?) {
                true => Reply::OK,
                false => Reply::Nil,
            }
        }
        (b"DEL", keys @ [_, ..]) => Reply::count(store.delete(keys)),
        (b"EXISTS", keys @ [_, ..]) => Reply::count(store.exist(keys)),
        (b"INCR", [key]) => Reply::Integer(store.increment(key)?),
        (b"EXPIRE", [key, seconds]) => {
            let seconds = integer(seconds).ok_or(Failure::NOT_AN_INTEGER)?;
            let existed = match u64::try_from(seconds) {
                // A time in the past.
                Err(_) | Ok(0) => store.delete(std::slice::from_ref(key)) > 0,
                Ok(seconds) => store.expire(key, expiry(Duration::from_secs(seconds), "expire")?),
            };
            Reply::Integer(existed.into())
        }
        (b"TTL", [key]) => Reply::Integer(match store.time_to_live(key) {
            None => -2,
            Some(None) => -1,
            Some(Some(left)) => (left.as_millis() as i64 + 500) / 1000,
        }),
        (b"LPUSH", [key, values @ ..]) if !values.is_empty() => {
            Reply::count(store.push(key, values, End::Left)?)
        }
        (b"RPUSH", [key, values @ ..]) if !values.is_empty() => {
            Reply::count(store.push(key, values, End::Right)?)
        }
        (b"LPOP", [key, count @ ..]) if count.len() <= 1 => pop(store, key, count, End::Left)?,
        (b"RPOP", [key, count @ ..]) if count.len() <= 1 => pop(store, key, count, End::Right)?,
        (b"LLEN", [key]) => Reply::count(store.length(key)?),
        (b"PING", []) => Reply::Simple("PONG"),
        (b"PING" | b"ECHO", [text]) => Reply::Bulk(text.clone()),
        // What clients ask about the server when they connect. It has one database, and nothing to
        // configure.
        (b"SELECT", [index]) => match integer(index) {
            Some(0) => Reply::OK,
            Some(_) => return Err(Failure::new("ERR DB index is out of range")),
            None => return Err(Failure::NOT_AN_INTEGER),
        },
        (b"INFO", _) => {
            let blocked = store.blocked_clients();
            Reply::Bulk(format!("# Clients\r\nblocked_clients:{blocked}\r\n").into())
        }
        (b"COMMAND", _) => Reply::Array(Vec::new()),
        (b"CONFIG", [get, names @ ..]) if get.eq_ignore_ascii_case(b"get") => {
            let pairs = names.iter().flat_map(|name| [name.clone(), Bytes::new()]);
            Reply::Array(pairs.map(Reply::Bulk).collect())
        }
        (b"CONFIG" | b"CLIENT", [_, ..]) => Reply::OK,
        (
            b"GET" | b"SET" | b"DEL" | b"EXISTS" | b"INCR" | b"EXPIRE" | b"TTL" | b"LPUSH"
            | b"RPUSH" | b"LPOP" | b"RPOP" | b"LLEN" | b"PING" | b"ECHO" | b"SELECT" | b"CONFIG"
            | b"CLIENT" | b"BLPOP" | b"PUBLISH" | b"SUBSCRIBE" | b"PSUBSCRIBE",
            _,
        ) => {
            let name = name.to_ascii_lowercase();
            let name = name.escape_ascii();
            let text = format!("ERR wrong number of arguments for '{name}' command");
            return Err(Failure::new(text));
        }
        _ => {
            let name = name[..name.len().min(128)].escape_ascii();
            return Err(Failure::new(format!("ERR unknown command '{name}'")));
        }
    })
}

/// How long BLPOP waits. `None` is for ever.
pub(crate) fn wait_limit(seconds: &[u8]) -> Result<Option<Instant>, Failure> {
    let seconds: Option<f64> = std::str::from_utf8(seconds)
        .ok()
        .and_then(|text| text.parse().ok());
    match seconds.filter(|seconds| seconds.is_finite()) {
        None => Err(Failure::new("ERR timeout is not a float or out of range")),
        Some(seconds) if seconds < 0.0 => Err(Failure::new("ERR timeout is negative")),
        Some(0.0) => Ok(None),
        Some(seconds) => Duration::try_from_secs_f64(seconds)
            .ok()
            .and_then(|wait| Instant::now().checked_add(wait))
            .map(Some)
            .ok_or(Failure::new("ERR timeout is out of range")),
    }
}

/// `[EX seconds | PX milliseconds] [NX | XX]`, in any order.
fn set_options(mut words: &[Bytes]) -> Result<SetOptions, Failure> {
    let mut options = SetOptions::default();
    while let [word, rest @ ..] = words {
        words = rest;
        let word = word.to_ascii_uppercase();
        match (word.as_slice(), rest, options) {
            (
                b"NX" | b"XX",
                _,
                SetOptions {
                    only_if_exists: None,
                    ..
                },
            ) => {
                options.only_if_exists = Some(word == b"XX");
            }
            (
                b"EX" | b"PX",
                [time, rest @ ..],
                SetOptions {
                    expires_at: None, ..
                },
            ) => {
                words = rest;
                let time = integer(time).ok_or(Failure::NOT_AN_INTEGER)?;
                let time = u64::try_from(time).unwrap_or(0);
                let time = match word.as_slice() {
                    b"EX" => Duration::from_secs(time),
                    _ => Duration::from_millis(time),
                };
                options.expires_at = Some(expiry(time, "set")?);
            }
            _ => return Err(Failure::SYNTAX),
        }
    }
    Ok(options)
}

/// When a key expires that is to exist for so long.
fn expiry(time: Duration, command: &str) -> Result<Instant, Failure> {
    // TTL has to fit into an integer of milliseconds.
    let is_valid = !time.is_zero() && time.as_millis() < i64::MAX as u128;
    let at = Instant::now().checked_add(time).filter(|_| is_valid);
    at.ok_or_else(|| Failure::new(format!("ERR invalid expire time in '{command}' command")))
}

/// `LPOP key [count]`, `RPOP key [count]`.
fn pop(store: &Store, key: &Bytes, count: &[Bytes], end: End) -> Result<Reply, Failure> {
    let Some(count) = count.first() else {
        let popped = store.pop(key, 1, end)?.and_then(|mut values| values.pop());
        return Ok(popped.map_or(Reply::Nil, Reply::Bulk));
    };
    let count = integer(count).and_then(|count| usize::try_from(count).ok());
    let count = count.ok_or(Failure::new("ERR value is out of range, must be positive"))?;
    let popped = store.pop(key, count, end)?;
    Ok(popped.map_or(Reply::NilArray, |values| {
        Reply::Array(values.into_iter().map(Reply::Bulk).collect())
    }))
}
