//! Other software on the same shapes in the same run: a Python script carried in the binary, for PyTorch and Triton where
//! the machine has them.

use std::io::Write;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::{Row, Table};

const SCRIPT: &str = include_str!("peers.py");

/// What a case computes, in terms that are not Ponder's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[allow(missing_docs)] // the numbers' names are the field's own
pub enum Shape {
    /// `[rows, k]` by the transpose of `[n, k]`.
    Linear { format: String, n: usize, k: usize, rows: usize },
    /// A decoded row of each of `rows` sequences over `context` tokens.
    Attention { format: String, heads: usize, kv_heads: usize, head_dim: usize, rows: usize, context: usize },
}

/// What one competitor took for a shape.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct PeerTime {
    /// Which.
    pub by: String,
    /// Median time.
    #[serde(default)]
    pub us: Option<f64>,
    /// Why there is none.
    #[serde(default)]
    pub why: Option<String>,
}

/// What the script prints.
#[derive(Deserialize)]
struct Answer {
    why: Option<String>,
    versions: serde_json::Value,
    times: Vec<Vec<PeerTime>>,
}

/// Fills `table.rows[..].peers` by running `python`; `table.beside` says what ran, or why nothing did.
pub fn run_beside(table: &mut Table, python: &str) {
    let rows: Vec<&mut Row> = table.rows.iter_mut().filter(|row| row.shape.is_some()).collect();
    let shapes: Vec<&Shape> = rows.iter().filter_map(|row| row.shape.as_ref()).collect();
    table.beside = match ask(python, &shapes) {
        Err(why) => why,
        Ok(Answer { why: Some(why), .. }) => why,
        Ok(answer) if answer.times.len() != shapes.len() => {
            format!("{} answers for {} shapes", answer.times.len(), shapes.len())
        }
        Ok(answer) => {
            rows.into_iter().zip(answer.times).for_each(|(row, times)| row.peers = times);
            answer.versions.to_string()
        }
    };
}

/// The script's answer, or why there is none.
fn ask(python: &str, shapes: &[&Shape]) -> Result<Answer, String> {
    // A file, since Triton reads the source of its kernels.
    let path = std::env::temp_dir().join(format!("ponder-peers-{}.py", std::process::id()));
    std::fs::write(&path, SCRIPT).map_err(|e| format!("{}: {e}", path.display()))?;
    let answer = run(python, &path, shapes);
    let _ = std::fs::remove_file(&path); // a leftover in the temporary folder harms nobody
    answer
}

fn run(python: &str, script: &std::path::Path, shapes: &[&Shape]) -> Result<Answer, String> {
    let mut command = Command::new(python);
    command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("{python} does not start: {e}"))?;
    let text = serde_json::to_vec(shapes).expect("shapes are plain data");
    // The script reads all before it writes; one that ends early says why on its own.
    let _ = child.stdin.take().expect("a pipe").write_all(&text);
    let output = child.wait_with_output().map_err(|e| format!("{python}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(said.lines().last().unwrap_or_default()).map_err(|_| {
        let words = String::from_utf8_lossy(&output.stderr);
        format!("{python} ended with {}: {}", output.status, words.lines().last().unwrap_or("without a word"))
    })
}

/// The rows that something ran beside, as the table prints them.
pub fn lines(table: &Table) -> Vec<String> {
    let mut out = vec![format!("beside: {}", table.beside)];
    for row in &table.rows {
        for peer in &row.peers {
            let theirs = match (peer.us, &peer.why) {
                (Some(us), _) => format!("{us:>10.1} us, {:>5.2} of ours", us / row.us),
                (None, why) => format!("none: {}", why.as_deref().unwrap_or("it did not say why")),
            };
            let Row { case, rows, context, .. } = row;
            out.push(format!("{case:<52} {rows:>4} rows {context:>6} ctx {:>10.1} us; {}: {theirs}", row.us, peer.by));
        }
    }
    out
}
