//! What was measured, as a table and as JSON.

use std::fs;
use std::path::Path;
use std::process::Command;

use podwire_netns_tests::{LabError, Result};
use serde_json::{Value, json};

use crate::rows::Size;

/// The marks between which `--write` puts the tables of a group.
fn marks(group: &str) -> [String; 2] {
    ["begin", "end"].map(|word| format!("<!-- {group} measured: {word} -->"))
}

/// Figures of one thing that was measured again and again.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// In the order of their size. Never empty: a measurement without a round is an error of the program.
    pub(crate) fn new(mut samples: Vec<f64>) -> Result<Self> {
        samples.sort_by(f64::total_cmp);
        if samples.is_empty() { Err(LabError::new("nothing was measured")) } else { Ok(Self(samples)) }
    }

    fn at(&self, share: f64) -> f64 {
        let last = self.0.len() - 1;
        self.0.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    }

    /// That which this share of them does not exceed.
    pub(crate) fn share(&self, share: f64) -> f64 {
        self.at(share)
    }

    /// The median.
    pub(crate) fn median(&self) -> f64 {
        self.at(0.5)
    }
}

/// What a figure is to be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// One line of the tables with goals.
struct Row {
    what: String,
    goal: Option<Goal>,
    measured: f64,
    unit: &'static str,
    how: String,
}

/// All lines of one run.
pub(crate) struct Report {
    machine: Value,
    rows: Vec<Row>,
    figures: Vec<(String, &'static str, Samples)>,
    failures: Vec<(String, String)>,
}

impl Report {
    /// An empty report about this machine.
    pub(crate) fn new(size: &Size) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
        let memory = read("/proc/meminfo")
            .split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse::<u64>().ok())
            .unwrap_or(0);
        let package =
            Command::new("dpkg-query").args(["-W", "-f=${Version}", "containernetworking-plugins"]).output();
        let package =
            package.map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default();
        let machine = json!({
            "kernel": read("/proc/sys/kernel/osrelease").trim(),
            "cpus": std::thread::available_parallelism().map_or(0, usize::from),
            "model": model.unwrap_or("unknown"),
            "memory_gib": (memory as f64 / 1_048_576.0).round(),
            "reference": package,
            "quick": size.is_quick(),
        });
        Ok(Self { machine, rows: Vec::new(), figures: Vec::new(), failures: Vec::new() })
    }

    /// A ratio to be at most `goal`; without one it is reported alone.
    pub(crate) fn ratio(&mut self, what: &str, goal: Option<f64>, this: f64, to: f64, unit: &str) {
        let how = format!("{} {unit} / {} {unit}", figure(this), figure(to));
        let goal = goal.map(Goal::AtMost);
        self.rows.push(Row { what: what.to_owned(), goal, measured: this / to, unit: "×", how });
    }

    /// The median of the ratios of what was measured one right after the other; the more the better.
    pub(crate) fn at_least(
        &mut self,
        what: &str,
        goal: f64,
        this: &[f64],
        to: &[f64],
        unit: &str,
    ) -> Result<()> {
        let pairs = this.iter().zip(to).map(|(this, to)| this / to).collect();
        let how = format!(
            "{} {unit} / {} {unit}",
            figure(Samples::new(this.to_vec())?.median()),
            figure(Samples::new(to.to_vec())?.median())
        );
        let (goal, measured) = (Some(Goal::AtLeast(goal)), Samples::new(pairs)?.median());
        self.rows.push(Row { what: what.to_owned(), goal, measured, unit: "×", how });
        Ok(())
    }

    /// The median of the ratios of what was measured one right after the other, with the interval that holds the true
    /// median of such rounds with 95 %: by their order, whatever their distribution.
    pub(crate) fn paired(
        &mut self,
        what: &str,
        goal: Option<Goal>,
        this: &[f64],
        to: &[f64],
        unit: &str,
    ) -> Result<()> {
        let ratios = Samples::new(this.iter().zip(to).map(|(this, to)| this / to).collect())?;
        let count = ratios.0.len() as f64;
        let half = 0.98 * count.sqrt();
        let at = |place: f64| ratios.at((place / (count - 1.0)).clamp(0.0, 1.0));
        let middle = (count - 1.0) / 2.0;
        let how = format!(
            "{}–{}; {} {unit} / {} {unit}",
            figure(at((middle - half).floor())),
            figure(at((middle + half).ceil())),
            figure(Samples::new(this.to_vec())?.median()),
            figure(Samples::new(to.to_vec())?.median())
        );
        self.rows.push(Row { what: what.to_owned(), goal, measured: ratios.median(), unit: "×", how });
        Ok(())
    }

    /// The figures behind a line.
    pub(crate) fn samples(&mut self, what: &str, unit: &'static str, samples: &[f64]) -> Result<()> {
        self.figures_in(what, unit, &Samples::new(samples.to_vec())?);
        Ok(())
    }

    /// A ratio of medians.
    pub(crate) fn compare(&mut self, what: &str, goal: Option<f64>, this: &Samples, to: &Samples) {
        self.ratio(what, goal, this.median(), to.median(), "ms");
    }

    /// An amount to be at most `goal`.
    pub(crate) fn amount(&mut self, what: &str, goal: Option<f64>, measured: f64, unit: &'static str) {
        let goal = goal.map(Goal::AtMost);
        self.rows.push(Row { what: what.to_owned(), goal, measured, unit, how: String::new() });
    }

    /// The figures behind a line, in milliseconds.
    pub(crate) fn figures(&mut self, what: &str, samples: &Samples) {
        self.figures_in(what, "ms", samples);
    }

    /// The figures behind a line, in another unit.
    pub(crate) fn figures_in(&mut self, what: &str, unit: &'static str, samples: &Samples) {
        self.figures.push((what.to_owned(), unit, samples.clone()));
    }

    /// Something that could not be measured.
    pub(crate) fn failed(&mut self, what: &str, error: &LabError) {
        self.failures.push((what.to_owned(), format!("{error:?}")));
    }

    /// Whether everything could be measured.
    pub(crate) fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }

    /// Everything, for programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "machine": self.machine,
            "goals": self.rows.iter().map(|row| json!({
                "what": row.what, "goal": row.goal.map(Goal::value), "measured": row.measured, "unit": row.unit, "from": row.how, "met": row.is_met(),
            })).collect::<Vec<_>>(),
            "figures": self.figures.iter().map(|(what, unit, samples)| json!({
                "what": what, "unit": unit, "rounds": samples.0.len(), "min": samples.at(0.0), "median": samples.median(),
                "p95": samples.at(0.95), "max": samples.at(1.0),
            })).collect::<Vec<_>>(),
            "not_measured": self.failures.iter().map(|(what, why)| json!({ "what": what, "why": why })).collect::<Vec<_>>(),
        })
    }

    /// Everything, for people.
    pub(crate) fn markdown(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "Linux {}, {} CPUs ({}), {} GiB; reference: containernetworking-plugins {}{}.\n\n",
            machine["kernel"].as_str().unwrap_or_default(),
            machine["cpus"],
            machine["model"].as_str().unwrap_or_default(),
            machine["memory_gib"],
            machine["reference"].as_str().unwrap_or_default(),
            if machine["quick"] == true { " (quick: too few to mean much)" } else { "" },
        );
        text.push_str("| | goal | measured | | medians |\n|---|---|---|---|---|\n");
        for row in &self.rows {
            let goal = row.goal.map_or("reported".to_owned(), |goal| {
                let sign = if matches!(goal, Goal::AtMost(_)) { "≤" } else { "≥" };
                format!("{sign} {} {}", goal.value(), row.unit)
            });
            let met = row.is_met().map_or("", |met| if met { "met" } else { "**missed**" });
            text.push_str(&format!(
                "| {} | {goal} | {} {} | {met} | {} |\n",
                row.what,
                figure(row.measured),
                row.unit,
                row.how
            ));
        }
        text.push_str("\n| ms, where no other unit is named | rounds | least | median | 95 % | most |\n|---|---|---|---|---|---|\n");
        for (what, unit, samples) in &self.figures {
            let unit = if *unit == "ms" { String::new() } else { format!(", {unit}") };
            let [least, median, most95, most] = [0.0, 0.5, 0.95, 1.0].map(|share| figure(samples.at(share)));
            text.push_str(&format!(
                "| {what}{unit} | {} | {least} | {median} | {most95} | {most} |\n",
                samples.0.len()
            ));
        }
        for (what, why) in &self.failures {
            text.push_str(&format!("\nNot measured: {what}: {why}\n"));
        }
        text
    }

    /// Puts the tables between a group's marks in a Markdown file.
    pub(crate) fn write(&self, path: impl AsRef<Path>, group: &str) -> Result<()> {
        let path = path.as_ref();
        let what = || LabError::because(format!("write {}", path.display()));
        let text = fs::read_to_string(path).map_err(what())?;
        let [begin, end] = marks(group);
        let parts =
            text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
        let (before, after) =
            parts.ok_or_else(|| LabError::new(format!("{} has no {begin} and {end}", path.display())))?;
        fs::write(path, format!("{before}{begin}\n{}{end}{after}", self.markdown())).map_err(what())
    }
}

impl Goal {
    fn value(self) -> f64 {
        match self {
            Self::AtMost(value) | Self::AtLeast(value) => value,
        }
    }
}

impl Row {
    fn is_met(&self) -> Option<bool> {
        self.goal.map(|goal| match goal {
            Goal::AtMost(most) => self.measured <= most,
            Goal::AtLeast(least) => self.measured >= least,
        })
    }
}

/// Three significant digits.
fn figure(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
