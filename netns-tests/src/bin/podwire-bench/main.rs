//! The benchmark: podwire, with and without its agent, beside Debian's plugins and the kernel's floor, in one run, on
//! nodes of its own. Whole processes from before the spawn to after the exit, as a runtime sees them; and what traffic costs.
//!
//! ```text
//! podwire-bench [--quick] [--only NAME,...] [--json] [--write FILE]
//! ```
//! `--quick` measures little, to see that all of it runs. `--write` puts the tables of each group that is measured whole
//! between its marks in a Markdown file. A goal that is missed is no failure: the exit code says whether everything could
//! be measured.

mod across;
mod full;
mod kubernetes;
mod relist;
mod report;
mod rows;
mod scale;
mod stage;

use std::process::ExitCode;

use podwire_netns_tests::{LabError, Result};

use report::Report;
use rows::Size;

struct Options {
    quick: bool,
    json: bool,
    only: Vec<String>,
    write: Option<String>,
}

fn options() -> Result<Options> {
    let mut options = Options { quick: false, json: false, only: Vec::new(), write: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| LabError::new(format!("{arg} needs a value")));
        match arg.as_str() {
            "--quick" => options.quick = true,
            "--json" => options.json = true,
            "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
            "--write" => options.write = Some(value()?),
            _ => {
                return Err(LabError::new(format!(
                    "unknown argument {arg}: [--quick] [--only NAME,...] [--json] [--write FILE]"
                )));
            }
        }
    }
    Ok(options)
}

fn run() -> Result<bool> {
    let options = options()?;
    let size = if options.quick { Size::quick() } else { Size::full() };
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let mut all = serde_json::Map::new();
    let mut complete = true;
    for group in &rows::GROUPS {
        let measurements: Vec<_> = group.measurements.iter().filter(|(name, _)| wanted(name)).collect();
        if measurements.is_empty() {
            continue;
        }
        let mut report = Report::new(&size)?;
        for (name, measure) in &measurements {
            eprintln!("bench: {name} …");
            // What cannot be measured is said, and the rest measured all the same.
            if let Err(error) = measure(&size, &mut report) {
                report.failed(name, &error);
            }
        }
        // Half a table would stand for the whole.
        if let Some(file) = &options.write
            && measurements.len() == group.measurements.len()
        {
            report.write(file, group.name)?;
        }
        if !options.json {
            println!("{}", report.markdown());
        }
        complete &= report.is_complete();
        all.insert(group.name.to_owned(), report.json());
    }
    if options.json {
        println!("{}", serde_json::Value::Object(all));
    }
    Ok(complete)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("podwire-bench: {error:?}");
            ExitCode::FAILURE
        }
    }
}
