//! Progress on stderr: the memory plan, then a bar while weights load. Bars show on a terminal only.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use ponder::LoadProgress;

use super::args::OutputArgs;

/// Shows a load.
pub struct Loading {
    bar: Option<ProgressBar>,
    plan: bool,
    bars: bool,
}

impl Loading {
    /// Shows what `output` wants shown: with `--json` and `--quiet`, nothing.
    pub fn new(output: &OutputArgs) -> Self {
        let plan = !output.quiet && !output.json;
        Self { bar: None, plan, bars: plan && std::io::stderr().is_terminal() }
    }

    /// One event of a load.
    pub fn show(&mut self, progress: LoadProgress) {
        match progress {
            LoadProgress::Planned { device, sizing } if self.plan => eprint!("device       {device}\n{sizing}"),
            LoadProgress::Weights { done, total } if self.bars => {
                let bar = self.bar.get_or_insert_with(|| byte_bar(total));
                bar.set_position(done);
            }
            LoadProgress::Planned { .. } | LoadProgress::Weights { .. } => {}
        }
    }

    /// The load is over.
    pub fn done(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// A bar for the work that follows; hidden where bars are.
    pub fn bar(&self, len: u64, what: &'static str) -> ProgressBar {
        if !self.bars {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template(&format!("{{bar:30}} {{pos}}/{{len}} {what} {{eta}} {{msg}}"));
        ProgressBar::new(len).with_style(style.expect("the template is a constant"))
    }
}

fn byte_bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("loading      {bar:30} {bytes}/{total_bytes} {eta}");
    ProgressBar::new(total).with_style(style.expect("the template is a constant"))
}
