//! Under the microscope: what lies in the slots of a forward pass after it ran.
//!
//! It opens the CPU backend and drives a `ModelRunner` itself: no scheduler, no actors.

use ponder::{BackendChoice, EngineOptions, Opened, WithBackend};
use ponder_engine::Result;
use ponder_engine::backend::{Backend, DeviceInfo};
use ponder_engine::model::batch::{Batch, LogitRow, Row};
use ponder_engine::request::SamplingParams;

struct Look(Opened);

impl WithBackend for Look {
    type Out = ();
    fn with<B: Backend>(self, info: DeviceInfo, make: impl Fn() -> Result<B> + Send + Sync + 'static) -> Result<()> {
        let mut runner = self.0.runner(&info, make, |_| {})?;
        let tokens = self.0.prompter.text_tokens("The quick brown fox")?;
        let last = tokens.len() - 1;
        let params = SamplingParams::default().row(0, tokens.len());
        let batch = Batch {
            rows: tokens.iter().zip(0..).map(|(t, p)| Row { token: *t, position: p, seq: 0 }).collect(),
            block_tables: vec![(0..tokens.len().div_ceil(16) as u32).collect()],
            logit_rows: vec![LogitRow { row: last as u32, params, adjust: Vec::new(), mask: None }],
            want_logits: true,
            ..Batch::default()
        };
        for (slot, values) in runner.inspect(&batch, &["residual", "normed", "attended"])? {
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let rms = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
            println!("{:<10} {:?}: {} values, mean {mean:.4}, rms {rms:.4}", slot.name, slot.shape, values.len());
        }
        let out = runner.run(&batch)?;
        println!("next token: {:?}", self.0.prompter.tokenizer().decode_with_special(&out.tokens));
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let options =
        EngineOptions { max_num_seqs: 1, backend: BackendChoice::Cpu, ..EngineOptions::new(ponder_examples::model()?) };
    ponder::backends::open(&options.clone(), Look(Opened::open(options)?))?;
    Ok(())
}
