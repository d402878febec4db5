//! Every record survives, and nothing else is taken for one.
//!
//! `arbitrary` makes the values from the bytes of a seeded generator: its derives know the fields,
//! it is small, and a failure is repeated by its seed. Records are short, so that smaller
//! counterexamples, as `proptest` finds them, would not be worth its dependencies.

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};

use arbitrary::{Arbitrary, Result, Unstructured};

use super::*;

const ROUNDS: u64 = 300;

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    pub(super) fn value<T: for<'a> Arbitrary<'a>>(&mut self) -> T {
        let size = self.below(400);
        T::arbitrary(&mut Unstructured::new(&self.bytes(size))).unwrap()
    }
}

// ---- values that not every value of their type is ----

impl Arbitrary<'_> for WirePath {
    fn arbitrary(from: &mut Unstructured<'_>) -> Result<Self> {
        let mut bytes = Vec::<u8>::arbitrary(from)?;
        bytes.retain(|byte| *byte != 0);
        bytes.push(b'/');
        Ok(Self::from_bytes(bytes).unwrap())
    }
}

pub(super) fn any_fd_name(from: &mut Unstructured<'_>) -> Result<String> {
    Ok(to_fd_name(&String::arbitrary(from)?))
}

/// Flow labels of IPv6 are not part of an address's text.
pub(super) fn any_socket_addr(from: &mut Unstructured<'_>) -> Result<SocketAddr> {
    Ok(SocketAddr::new(
        IpAddr::arbitrary(from)?,
        u16::arbitrary(from)?,
    ))
}

pub(super) fn any_seconds(from: &mut Unstructured<'_>) -> Result<f64> {
    Ok(f64::from(u32::arbitrary(from)?) / 1000.0)
}

pub(super) fn any_optional_seconds(from: &mut Unstructured<'_>) -> Result<Option<f64>> {
    match bool::arbitrary(from)? {
        true => any_seconds(from).map(Some),
        false => Ok(None),
    }
}

// ---- properties ----

/// Runs `check` for values of every type of record, and a generator for what else is random.
macro_rules! for_every_record {
    ($check:ident) => {
        for_every_record!($check: Answer BindAnswer HandshakeMessage Launch HandoverFields MoveMessage Snapshot Status);
    };
    ($check:ident: $($record:ident)*) => {
        for seed in 0..ROUNDS {
            $($check(seed, &mut Random(seed), &Random(!seed).value::<$record>());)*
        }
    };
}

#[test]
fn every_record_survives() {
    fn check<R: Record + PartialEq + Debug>(seed: u64, _: &mut Random, record: &R) {
        let text = record.encode().unwrap();
        assert!(
            text.starts_with("{\"v\":1") && text.len() <= R::LIMIT,
            "{text}"
        );
        assert!(!text.contains(['\n', '\r', '\0']), "{text:?}");
        assert_eq!(&R::decode(text.as_bytes()).unwrap(), record, "seed {seed}");
        // A later release may have more to say.
        let more = text.replacen("{", r#"{"later":[{"a":null}],"#, 1);
        assert_eq!(&R::decode(more.as_bytes()).unwrap(), record, "seed {seed}");
    }
    for_every_record!(check);
}

#[test]
fn a_damaged_record_is_an_error_or_another_record() {
    fn check<R: Record + PartialEq + Debug>(seed: u64, random: &mut Random, record: &R) {
        let text = record.encode().unwrap().into_bytes();
        let cut = random.below(text.len());
        assert!(R::decode(&text[..cut]).is_err(), "seed {seed}");
        let mut damaged = text;
        for _ in 0..=random.below(4) {
            let at = random.below(damaged.len());
            match random.below(3) {
                0 => damaged[at] = random.next() as u8,
                1 => drop(damaged.remove(at)),
                _ => damaged.insert(at, b"{}[]\",:0-e\\u"[random.below(12)]),
            }
            // Damage may make another record, which is as good as any.
            if let Ok(other) = R::decode(&damaged) {
                assert!(
                    R::decode(other.encode().unwrap().as_bytes()).is_ok(),
                    "seed {seed}"
                );
            }
        }
        let size = random.below(200);
        assert!(R::decode(&random.bytes(size)).is_err(), "seed {seed}");
    }
    for_every_record!(check);
}

#[test]
fn another_version_or_kind_is_an_error() {
    fn check<R: Record + PartialEq + Debug>(seed: u64, _: &mut Random, record: &R) {
        let text = record.encode().unwrap();
        let other = text.replacen(r#""v":1"#, r#""v":7"#, 1);
        let error = R::decode(other.as_bytes()).unwrap_err();
        assert!(
            matches!(error, WireError::Version(7)),
            "seed {seed}: {error}"
        );
        let older = text.replacen(r#""v""#, r#""w""#, 1);
        assert!(matches!(
            R::decode(older.as_bytes()),
            Err(WireError::Malformed(_))
        ));
        let Some(rest) = text.strip_prefix(r#"{"v":1,"type":""#) else {
            return;
        };
        let (kind, rest) = rest.split_once('"').unwrap();
        for other in ["", "else", "Hello", &kind[1..]] {
            let other = format!(r#"{{"v":1,"type":"{other}"{rest}"#);
            let error = R::decode(other.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("unknown variant"), "{error}");
        }
        let none = format!(r#"{{"v":1{rest}"#);
        assert!(R::decode(none.as_bytes()).is_err(), "{none}");
    }
    for_every_record!(check);
}

#[test]
fn nothing_that_is_too_long_is_written_or_read() {
    fn check<R: Record>() {
        let long = vec![b' '; R::LIMIT + 1];
        assert!(matches!(R::decode(&long), Err(WireError::TooLong(limit)) if limit == R::LIMIT));
    }
    check::<Answer>();
    check::<BindAnswer>();
    check::<HandshakeMessage>();
    check::<MoveMessage>();
    check::<Launch>();
    check::<HandoverFields>();
    check::<Snapshot>();
    check::<Status>();
    let paths = vec![WirePath::from_bytes(vec![255; 100]).unwrap(); 200];
    let message = HandshakeMessage::Commit {
        paths,
        drain_millis: None,
    };
    assert!(matches!(message.encode(), Err(WireError::TooLong(_))));
}

#[test]
fn a_long_text_is_cut_and_its_record_sent() {
    for text in [
        "ä".repeat(20_000),
        "\u{1}".repeat(20_000),
        "x".repeat(20_000),
    ] {
        let error = io::Error::other(text.clone());
        let answer = BindAnswer::from(&error).encode().unwrap();
        let error = BindAnswer::decode(answer.as_bytes()).unwrap().into_result();
        let cut = error.unwrap_err().to_string();
        assert!(text.starts_with(&cut) && cut.len() == 128, "{cut}");
        let message = HandshakeMessage::Drained { report: text };
        assert!(message.encode().is_ok());
    }
}

/// The snapshot of a supervisor that knows no lanes.
#[test]
fn an_older_snapshot_has_no_lanes() {
    let mut snapshot: Snapshot = Random(1).value();
    let lane = LaneRecord {
        pid: 4711,
        uid: 1000,
        descriptor: 17,
    };
    snapshot.lanes = vec![lane];
    let text = snapshot.encode().unwrap();
    let lanes = r#","lanes":[{"pid":4711,"uid":1000,"descriptor":17}]"#;
    let older = text.replace(lanes, "");
    assert_ne!(older, text);
    let decoded = Snapshot::decode(older.as_bytes()).unwrap();
    snapshot.lanes = Vec::new();
    assert_eq!(decoded, snapshot);
}

/// The examples at the head of the module are what is written.
#[test]
fn the_examples_are_records() {
    let mut examples: Vec<String> = Vec::new();
    let mut is_open = false;
    for line in include_str!("mod.rs").lines() {
        if line.starts_with("//! {") {
            examples.push(line[4..].to_owned());
            is_open = true;
        } else if let Some(rest) = line.strip_prefix("//!   ").filter(|_| is_open) {
            examples.last_mut().unwrap().push_str(rest);
        } else {
            is_open = false;
        }
    }
    assert_eq!(examples.len(), 4 + 15 + 2 + 6 + 2 + 1 + 3);
    let mut lines = examples.into_iter();
    let mut check = |written: fn(&str) -> String, count| {
        for line in lines.by_ref().take(count) {
            assert_eq!(written(&line), line);
        }
    };
    fn again<R: Record>(line: &str) -> String {
        R::decode(line.as_bytes()).unwrap().encode().unwrap()
    }
    fn launch(line: &str) -> String {
        let launch = Launch::read(line, 4711).unwrap().unwrap();
        let (before, behind) = launch.encode_around_pid().unwrap();
        format!("{before}4711      {behind}")
    }
    check(launch, 4);
    check(again::<HandshakeMessage>, 15);
    check(again::<MoveMessage>, 2);
    check(again::<HandoverFields>, 6);
    check(again::<BindAnswer>, 2);
    check(again::<Snapshot>, 1);
    check(again::<Status>, 1);
    check(again::<Answer>, 2);
}
