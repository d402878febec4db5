//! Medians, and the goals that they are checked against.

use std::time::Duration;

/// The median. Not a number, if there are no figures.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        length => (figures[(length - 1) / 2] + figures[length / 2]) / 2.0,
    }
}

/// The median, and the range, as text.
pub(crate) fn spread(figures: impl IntoIterator<Item = f64>) -> String {
    let figures: Vec<f64> = figures.into_iter().collect();
    let lowest = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let [median, lowest, highest] = [median(figures), lowest, highest].map(short);
    format!("{median} ({lowest}–{highest})")
}

/// Prints one line of a Markdown table.
pub(crate) fn print_row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A number with three significant digits, or with all digits left of the point.
pub(crate) fn short(number: f64) -> String {
    let decimals = match number.abs() {
        whole if whole.fract() == 0.0 => 0,
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{number:.decimals$}")
}

/// What the figures are to be, and what they are.
#[derive(Default)]
pub(crate) struct Goals(Vec<Goal>);

struct Goal {
    text: String,
    measured: String,
    /// `None`: the figure is only reported.
    met: Option<bool>,
}

impl Goals {
    pub(crate) fn at_most(&mut self, text: impl Into<String>, figure: f64, limit: f64) {
        self.push(text, short(figure), Some(figure <= limit));
    }

    pub(crate) fn at_least(&mut self, text: impl Into<String>, figure: f64, limit: f64) {
        self.push(text, short(figure), Some(figure >= limit));
    }

    /// The figure is within a factor of 1.
    pub(crate) fn within(&mut self, text: impl Into<String>, figure: f64, factor: f64) {
        let met = (1.0 / factor..=factor).contains(&figure);
        self.push(text, short(figure), Some(met));
    }

    /// Reports a figure that has no goal.
    pub(crate) fn report(&mut self, text: impl Into<String>, measured: impl Into<String>) {
        self.push(text, measured.into(), None);
    }

    fn push(&mut self, text: impl Into<String>, measured: String, met: Option<bool>) {
        self.0.push(Goal {
            text: text.into(),
            measured,
            met,
        });
    }

    /// Prints the goals. Returns whether at least one was checked, and every one was met.
    pub(crate) fn print(&self) -> bool {
        println!("\n| goal | measured | met |\n|---|---:|---|");
        for goal in &self.0 {
            let met = match goal.met {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "no goal",
            };
            println!("| {} | {} | {met} |", goal.text, goal.measured);
        }
        let mut checked = self.0.iter().filter_map(|goal| goal.met).peekable();
        checked.peek().is_some() && checked.all(|met| met)
    }
}
