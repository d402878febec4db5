//! Finds a small history that breaks the same promise: takes away decisions, in pieces that become
//! smaller, as long as what is left still fails.

use super::history::History;
use super::play::Play;

pub(crate) fn describe_smallest(mut history: History) -> String {
    let Err(first) = Play::play(&history, false) else {
        return "the history fails only sometimes".to_owned();
    };
    let mut size = history.decisions.len();
    while size > 0 {
        let mut at = 0;
        let mut has_shrunk = false;
        while at < history.decisions.len() {
            let mut smaller = history.clone();
            let end = (at + size).min(smaller.decisions.len());
            smaller.decisions.drain(at..end);
            let result = Play::play(&smaller, false);
            if result.is_err_and(|failure| failure.name == first.name) {
                history = smaller;
                has_shrunk = true;
            } else {
                at += size;
            }
        }
        if !has_shrunk {
            size /= 2;
        }
    }
    let failure = match Play::play(&history, true) {
        Err(failure) => failure,
        Ok(_) => first,
    };
    let kind = match history.is_foreign {
        true => "a program that is not of this crate",
        false => "a program of this crate",
    };
    let mut text = format!(
        "\nseed {}: {}: {}\n{kind}, {:?}\n",
        history.seed, failure.name, failure.promise, history.policy
    );
    for decision in &history.decisions {
        text += &format!("decision: {decision:?}\n");
    }
    text + &failure.trace.join("\n") + "\n"
}
