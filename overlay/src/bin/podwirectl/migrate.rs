//! `podwirectl migrate flannel`: looks, tells the plan, and carries it out step by step.

mod api;
mod back;
mod look;
mod steps;

use podwire_ipam::Dirs;
use podwire_overlay::migrate::text;
use podwire_overlay::migrate::{Plan, Step};
use podwire_overlay::terminal::harmless;
use serde::Serialize;

use crate::cli;
use crate::output::{Failure, Output, Verdict};

pub(crate) fn flannel(dirs: &Dirs, options: &cli::Flannel, output: &Output) -> Result<Verdict, Failure> {
    if options.back {
        return back::run(dirs, options, output);
    }
    let facts = look::facts(dirs, options)?;
    let plan = Plan::new(&facts);
    let carry_out = |step: &Step<_>| steps::carry_out(&step.action, &facts, dirs, options);
    let again = || Ok(Plan::new(&look::facts(dirs, options)?));
    go(plan, options.dry_run, output, &carry_out, &again)
}

/// What programs are told.
#[derive(Serialize)]
#[serde(rename_all = "camelCase", bound = "")]
struct Told<'p, A> {
    dry_run: bool,
    done: bool,
    #[serde(flatten)]
    plan: &'p Plan<A>,
}

/// Tells a plan and carries it out. `again` looks once more: what is told at the end is what is there.
fn go<A>(
    plan: Plan<A>,
    dry_run: bool,
    output: &Output,
    carry_out: &dyn Fn(&Step<A>) -> Result<String, Failure>,
    again: &dyn Fn() -> Result<Plan<A>, Failure>,
) -> Result<Verdict, Failure> {
    let tell = |text: String| if output.json { Ok(()) } else { output.raw(&text) };
    let stops = !plan.refused.is_empty();
    if stops || dry_run {
        let done = plan.is_done();
        if output.json {
            output.value(&Told { dry_run, done, plan: &plan })?;
        } else {
            output.raw(&text::whole(&plan, output.style))?;
        }
        return Ok((!stops).into());
    }
    tell(text::found(&plan, output.style))?;
    for (index, step) in plan.steps.iter().enumerate() {
        tell(text::step(index, step, output.style))?;
        if !step.is_done {
            let outcome = carry_out(step).map_err(|failure| Failure {
                text: format!(
                    "step {} failed, and those before it are done; begin again by the same command: {}",
                    index + 1,
                    failure.text
                ),
                ..failure
            })?;
            tell(format!("     {}\n", harmless(&outcome)))?;
        }
    }
    let plan = again()?;
    let done = plan.is_done();
    if output.json {
        output.value(&Told { dry_run, done, plan: &plan })?;
    } else {
        output.raw(&text::end(&plan, output.style))?;
    }
    Ok(done.into())
}
