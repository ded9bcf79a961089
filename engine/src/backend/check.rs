//! What every backend must show: agreement with the oracle op by op, and rows that do not change
//! with their neighbours, their number or the row bucket.

use std::collections::HashMap;

use super::reference::ReferenceBackend;
use super::{Backend, Bound, cast_vec};
use crate::error::{DeviceFault, Error, Result};
use crate::format::KvFormat;
use crate::kv::Copies;
use crate::model::mover::BlockMover;
use crate::op::lower::lower;
use crate::op::problem::{Expected, Problem, noise, problems};
use crate::op::{Attention, KvStore, LatentAttention, LatentStore, Op};
use crate::program::{Elem, LatentShape, Program, Role, SlotDecl};

/// Runs a problem; returns the bytes of its outputs.
pub fn run<B: Backend>(backend: &mut B, problem: &Problem) -> Result<Vec<Vec<u8>>> {
    let mut bound: Bound<B::Buffer> = Bound::default();
    let mut plans = Vec::new();
    for program in &problem.programs {
        let lowered = lower(program, |op| backend.supports(op));
        bind(backend, problem, &lowered, &mut bound)?;
        plans.push(backend.compile(&lowered, &bound)?);
    }
    for (program, inputs) in &problem.launches {
        for (name, bytes) in inputs {
            backend.write(&bound[name], bytes)?;
        }
        let pending = backend.launch(&plans[*program])?;
        backend.wait(pending)?;
    }
    let mut outputs = Vec::new();
    for expected in &problem.outputs {
        let mut out = vec![0u8; expected.len * 4];
        backend.read(&bound[&expected.slot], &mut out)?;
        outputs.push(out);
    }
    Ok(outputs)
}

/// The ops of a problem, lowered as far as they can be, that `backend` has no kernel for.
fn lacking<B: Backend>(backend: &B, problem: &Problem) -> Vec<Op> {
    let lowered = problem.programs.iter().map(|program| lower(program, |op| backend.supports(op)));
    lowered.flat_map(|program| program.ops).filter(|op| !backend.supports(op)).collect()
}

/// The problems that `backend` has all kernels for.
fn able<B: Backend>(backend: &B, rows: usize, live: usize) -> Vec<Problem> {
    problems(rows, live).into_iter().filter(|p| lacking(backend, p).is_empty()).collect()
}

/// A line, where `backend` takes a problem with an op that it lacks, or refuses it without naming one.
fn refusal<B: Backend>(backend: &mut B, problem: &Problem, lacking: &[Op]) -> Option<String> {
    match run(backend, problem) {
        Ok(_) => Some(format!("{}: it ran, without a kernel for {}", problem.name, lacking[0].name())),
        Err(Error::Device { what: DeviceFault::Unsupported(words), .. })
            if lacking.iter().any(|op| words.contains(op.name())) =>
        {
            None
        }
        Err(error) => Some(format!("{}: {error}, where {} is lacking", problem.name, lacking[0].name())),
    }
}

/// Buffers for the slots of `program`. Weights and caches are shared between the programs of a problem;
/// inputs of a later program are its own.
fn bind<B: Backend>(backend: &mut B, problem: &Problem, program: &Program, bound: &mut Bound<B::Buffer>) -> Result<()> {
    for decl in &program.slots {
        let buffer = match decl.role {
            Role::Scratch => continue,
            Role::Kv if bound.contains_key(&decl.name) => continue,
            Role::Weight => backend.load(decl, &problem.weights[&decl.name])?,
            Role::Input if decl.name == "live" && bound.contains_key("live") => continue,
            _ => backend.alloc(decl)?,
        };
        bound.insert(decl.name.clone(), buffer);
    }
    Ok(())
}

/// Blocks that move within the device, to host memory and back, byte for byte: a cache, and a slot of odd words
/// beside it, as scales are. Returns how many copies were looked at.
pub fn blocks_move<B: Backend>(backend: &mut B) -> Result<usize> {
    const BLOCKS: usize = 90;
    let kv =
        |name: &str, elem, shape: &[usize]| SlotDecl { name: name.into(), role: Role::Kv, elem, shape: shape.into() };
    let slots = [kv("k", Elem::Kv(KvFormat::F16), &[BLOCKS, 4, 2, 16]), kv("scales", Elem::F32, &[BLOCKS, 3])];
    let live = SlotDecl { name: "live".into(), role: Role::Input, elem: Elem::U32, shape: vec![2] };
    let mut bound: Bound<B::Buffer> = Bound::from_iter([(live.name.clone(), backend.alloc(&live)?)]);
    let mut mover = BlockMover::default();
    let all: Vec<u32> = (0..BLOCKS as u32).collect();
    let mut want: Vec<Vec<u8>> = Vec::new();
    for (i, slot) in slots.iter().enumerate() {
        let bytes: Vec<u8> = (0..BLOCKS * backend.block_bytes(slot)).map(|b| (b * 7 + b / 256 + i) as u8).collect();
        let buffer = backend.alloc(slot)?;
        backend.load_blocks(&buffer, slot, &all, &bytes)?;
        bound.insert(slot.name.clone(), buffer);
        mover.know(slot.clone());
        want.push(bytes);
    }
    // More pairs than one launch takes; saved blocks are overwritten by what is loaded and copied after them.
    let first = Copies { save: vec![(3, 1), (80, 0), (5, 2)], ..Copies::default() };
    let second = Copies {
        save: vec![(7, 3)],
        load: vec![(1, 80), (3, 3), (0, 7)],
        copy: (0..70).filter(|b| ![3, 7].contains(b)).map(|b| (80, b)).collect(),
    };
    for copies in [&first, &second] {
        mover.run(backend, &mut bound, copies)?;
    }
    for (slot, want) in slots.iter().zip(&mut want) {
        let bytes = backend.block_bytes(slot);
        let old = want.clone();
        let mut put = |to: u32, from: u32| {
            want[to as usize * bytes..][..bytes].copy_from_slice(&old[from as usize * bytes..][..bytes]);
        };
        [(80, 3), (3, 7), (7, 80)].into_iter().for_each(|(to, from)| put(to, from));
        second.copy.iter().for_each(|(_, to)| put(*to, 3));
        let mut got = vec![0; want.len()];
        backend.save_blocks(&bound[&slot.name], slot, &all, &mut got)?;
        if let Some(at) = got.iter().zip(want.iter()).position(|(got, want)| got != want) {
            let what = format!("block {} of {} is not what was copied there", at / bytes, slot.name);
            return Err(Error::Device { device: backend.info().name.clone(), what: DeviceFault::Rejected(what) });
        }
    }
    Ok(second.copy.len() + 6)
}

/// Compares `backend` with the oracle on every problem at some numbers of rows. A problem with an op that it lacks must
/// be refused in words that name the op. Returns how many problems ran; the error names each that disagrees.
pub fn agrees_with_reference<B: Backend>(backend: &mut B) -> Result<usize> {
    let mut failures = Vec::new();
    let mut count = 0;
    for (rows, live) in [(1, 1), (8, 7), (32, 19)] {
        for problem in problems(rows, live) {
            let lacking = lacking(backend, &problem);
            if !lacking.is_empty() {
                failures.extend(refusal(backend, &problem, &lacking));
                continue;
            }
            count += 1;
            let want = run(&mut ReferenceBackend::default(), &problem)?;
            match run(backend, &problem) {
                Err(error) => failures.push(format!("{} ({live} of {rows} rows): {error}", problem.name)),
                Ok(got) => failures.extend(differences(&problem, &want, &got, rows, live)),
            }
        }
    }
    verdict(backend, failures, count)
}

/// One line for each output of a problem that differs too much, or that says nothing.
#[allow(clippy::neg_cmp_op_on_partial_ord)] // a NaN differs too
fn differences(problem: &Problem, want: &[Vec<u8>], got: &[Vec<u8>], rows: usize, live: usize) -> Vec<String> {
    let mut out = Vec::new();
    for ((expected, want), got) in problem.outputs.iter().zip(want).zip(got) {
        let place = format!("{}: {} ({live} of {rows} rows)", problem.name, expected.slot);
        let Some(tolerance) = expected.tolerance else {
            if want != got {
                let ids = cast_vec::<u32>;
                out.push(format!("{place}: ids {:?}, not {:?}", ids(got), ids(want)));
            }
            continue;
        };
        let (want, got): (Vec<f32>, Vec<f32>) = (cast_vec(want), cast_vec(got));
        let max = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(max > 0.0 && want.iter().all(|v| v.is_finite()), "{place}: the reference says nothing");
        let worst = want.iter().zip(&got).enumerate().map(|(i, (w, g))| (i, (w - g).abs()));
        let worst = worst.fold((0, 0f32), |a, b| if b.1 > a.1 || b.1.is_nan() { b } else { a });
        if !(worst.1 as f64 <= tolerance * max as f64) {
            let i = worst.0;
            out.push(format!(
                "{place}: row {} column {}: {} instead of {} (off by {:.1e} of the largest, allowed {tolerance:.0e})",
                i / expected.width,
                i % expected.width,
                got[i],
                want[i],
                worst.1 / max
            ));
        }
    }
    out
}

/// Checks that a row's bits are the same at every number of live rows and in every row bucket.
pub fn rows_are_independent<B: Backend>(backend: &mut B) -> Result<usize> {
    let mut failures = Vec::new();
    let mut count = 0;
    let widest: Vec<(Problem, Vec<Vec<u8>>)> =
        able(backend, 64, 40).into_iter().map(|p| run(backend, &p).map(|out| (p, out))).collect::<Result<_>>()?;
    for (rows, live) in [(1, 1), (2, 2), (4, 3), (8, 5), (16, 16), (64, 1), (64, 33)] {
        for (problem, (_, wide)) in able(backend, rows, live).iter().zip(&widest) {
            if problem.name == "gather rows" {
                continue; // its rows are gathered from the end, so they differ by design
            }
            count += 1;
            let got = run(backend, problem)?;
            for ((expected, got), wide) in problem.outputs.iter().zip(&got).zip(wide) {
                if got[..] != wide[..got.len()] {
                    failures
                        .push(format!("{}: {}: {live} of {rows} rows against 40 of 64", problem.name, expected.slot));
                }
            }
        }
    }
    verdict(backend, failures, count)
}

/// Checks that what is cached does not depend on how tokens are cut into steps: the last row of every problem
/// that stores and attends has the same bits after one launch of all rows as after one launch for each.
pub fn chunks_keep_their_bits<B: Backend>(backend: &mut B) -> Result<usize> {
    let (rows, live, mut count, mut failures) = (64, 40, 0, Vec::new());
    let stores = |p: &Problem| ["qkv", "latent chunk"].iter().any(|name| p.name.starts_with(name));
    for whole in able(backend, rows, live).into_iter().filter(stores) {
        let (_, inputs) = &whole.launches[0];
        let one = |row: usize| {
            let part = |(name, bytes): (&String, &Vec<u8>)| {
                let width = bytes.len() / rows;
                let part = match name.as_str() {
                    "live" => bytemuck::cast_slice(&[1u32, 1]).to_vec(),
                    "block_tables" => bytes.clone(),
                    _ => bytes[row * width..][..width].to_vec(),
                };
                (name.clone(), part)
            };
            (0, inputs.iter().map(part).collect())
        };
        let cut = Problem { launches: (0..live).map(one).collect(), ..whole.clone() };
        let (want, got) = (run(backend, &whole)?, run(backend, &cut)?);
        for ((expected, want), got) in whole.outputs.iter().zip(want).zip(got) {
            count += 1;
            let bytes = 4 * expected.width;
            if got[..bytes] != want[(live - 1) * bytes..][..bytes] {
                failures.push(format!("{}: {}: row by row against all at once", whole.name, expected.slot));
            }
        }
    }
    verdict(backend, failures, count)
}

/// Checks that a token with an infinite key and value spoils the attention of its own row and of every later
/// one, in every cache format, and of none before; and the same of an infinity in a latent and of a NaN in the rotated
/// key beside it (there an infinity may become a score of -infinity, which hides the token). Returns how many ran.
pub fn broken_tokens_show<B: Backend>(backend: &mut B) -> Result<usize> {
    let mut failures = Vec::new();
    let each = KvFormat::ALL
        .into_iter()
        .flat_map(|kv| [broken(kv), broken_latent(kv, 5, f32::INFINITY), broken_latent(kv, 70, f32::NAN)]);
    let able: Vec<Problem> = each.filter(|p| lacking(backend, p).is_empty()).collect();
    for problem in &able {
        let out: Vec<f32> = cast_vec(&run(backend, problem)?[0]);
        let spoilt: Vec<bool> = out.chunks(BROKEN_DIM).map(|row| row.iter().any(|x| !x.is_finite())).collect();
        if spoilt != [false, true, true] {
            failures.push(format!("{}: rows that show it: {spoilt:?}, not the second and third", problem.name));
        }
    }
    verdict(backend, failures, able.len())
}

/// Rows of [`broken`], and width of their values.
const BROKEN_ROWS: usize = 3;
const BROKEN_DIM: usize = 64;

/// Three tokens of one sequence, the second with an infinite key and value.
fn broken(kv: KvFormat) -> Problem {
    let mut p = Program::new("broken", BROKEN_ROWS, BROKEN_ROWS);
    let mut input = |name: &str, elem, shape: &[usize]| p.slot(name, Role::Input, elem, shape);
    let [q, k, v] = ["q", "k", "v"].map(|name| input(name, Elem::F32, &[BROKEN_ROWS, BROKEN_DIM]));
    let slot_mapping = input("slot_mapping", Elem::I32, &[BROKEN_ROWS]);
    let [positions, row_seq] = ["positions", "row_seq"].map(|name| input(name, Elem::U32, &[BROKEN_ROWS]));
    let block_tables = input("block_tables", Elem::U32, &[1, 1]);
    let [k_cache, v_cache] = p.kv_caches(["k_cache", "v_cache"], kv, [1, 16, 1, BROKEN_DIM]);
    let out = p.slot("out", Role::Output, Elem::F32, &[BROKEN_ROWS, BROKEN_DIM]);
    p.push(KvStore { x: k, cache: k_cache, slot_mapping });
    p.push(KvStore { x: v, cache: v_cache, slot_mapping });
    let (heads, kv_heads, head_dim, scale, window) = (1, 1, BROKEN_DIM, 0.125, None);
    p.push(Attention {
        q,
        k_cache,
        v_cache,
        positions,
        row_seq,
        block_tables,
        out,
        heads,
        kv_heads,
        head_dim,
        scale,
        window,
    });
    let infinity = Some((5, f32::INFINITY));
    broken_problem(format!("broken {kv}"), p, &[("q", None), ("k", infinity), ("v", infinity)])
}

/// The same with latent vectors, of which the second has `value` in `column`.
fn broken_latent(kv: KvFormat, column: usize, value: f32) -> Problem {
    let (latent, rope, heads, scale) = (BROKEN_DIM, 16, 1, 0.125);
    let mut p = Program::new("broken", BROKEN_ROWS, BROKEN_ROWS);
    let mut input = |name: &str, elem, shape: &[usize]| p.slot(name, Role::Input, elem, shape);
    let [q, x] = ["q", "x"].map(|name| input(name, Elem::F32, &[BROKEN_ROWS, latent + rope]));
    let slot_mapping = input("slot_mapping", Elem::I32, &[BROKEN_ROWS]);
    let [positions, row_seq] = ["positions", "row_seq"].map(|name| input(name, Elem::U32, &[BROKEN_ROWS]));
    let block_tables = input("block_tables", Elem::U32, &[1, 1]);
    let cache = p.latent_cache("cache", kv, LatentShape { blocks: 1, block_size: 16, latent, rope });
    let out = p.slot("out", Role::Output, Elem::F32, &[BROKEN_ROWS, latent]);
    p.push(LatentStore { x, cache, slot_mapping, latent, rope });
    p.push(LatentAttention { q, cache, positions, row_seq, block_tables, out, heads, latent, rope, scale });
    broken_problem(format!("broken latent {kv}: {value}"), p, &[("q", None), ("x", Some((column, value)))])
}

/// An input of numbers, and what its second row has in some column instead of its own.
type Floats<'a> = (&'a str, Option<(usize, f32)>);

/// One launch of `program` with `floats` as its inputs of numbers.
fn broken_problem(name: String, program: Program, floats: &[Floats<'_>]) -> Problem {
    let values = |(name, broken): &Floats<'_>| {
        let slot = program.find(name).expect("an input of the program");
        let width = program.decl(slot).shape[1];
        let mut x: Vec<f32> = (0..BROKEN_ROWS * width).map(|i| noise(3, name, i / width, i % width)).collect();
        if let Some((column, value)) = broken {
            x[width + column] = *value;
        }
        (name.to_string(), bytemuck::cast_slice(&x).to_vec())
    };
    let ids = [
        ("live", vec![3, 3]),
        ("slot_mapping", vec![0, 1, 2]),
        ("positions", vec![0, 1, 2]),
        ("row_seq", vec![0u32; BROKEN_ROWS]),
        ("block_tables", vec![0]),
    ];
    let ids = ids.iter().map(|(name, x)| (name.to_string(), bytemuck::cast_slice(x).to_vec()));
    let inputs = floats.iter().map(values).chain(ids).collect();
    let len = BROKEN_ROWS * BROKEN_DIM;
    let expected = Expected { slot: "out".into(), len, width: BROKEN_DIM, tolerance: None };
    Problem {
        name,
        programs: vec![program],
        weights: HashMap::new(),
        launches: vec![(0, inputs)],
        outputs: vec![expected],
    }
}

fn verdict<B: Backend>(backend: &B, failures: Vec<String>, count: usize) -> Result<usize> {
    if failures.is_empty() {
        return Ok(count);
    }
    let what = format!("{} of {count} problems differ:\n  {}", failures.len(), failures.join("\n  "));
    Err(Error::Device { device: backend.info().name.clone(), what: DeviceFault::Rejected(what) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_agrees_with_itself_lowered_or_not() {
        // Also shows that every problem runs, and that `fused == lowered` where the oracle is both.
        let mut failures = Vec::new();
        for problem in problems(8, 7) {
            let fused = run(&mut ReferenceBackend::default(), &problem).unwrap();
            let mut small = problem.clone();
            small.programs.iter_mut().for_each(|p| *p = lower(p, |op| !op.is_fused()));
            let lowered = run(&mut ReferenceBackend::default(), &small).unwrap();
            failures.extend(differences(&problem, &fused, &lowered, 8, 7));
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn the_oracle_shows_broken_tokens() {
        assert_eq!(broken_tokens_show(&mut ReferenceBackend::default()).unwrap(), 12);
    }

    #[test]
    fn a_wrong_answer_is_noticed() {
        let problem = problems(8, 7).into_iter().find(|p| p.name.starts_with("linear Q4_1")).unwrap();
        let want = run(&mut ReferenceBackend::default(), &problem).unwrap();
        let mut wrong = problem.clone();
        wrong.weights.get_mut("w").unwrap()[7] ^= 0x11;
        let got = run(&mut ReferenceBackend::default(), &wrong).unwrap();
        assert_eq!(differences(&problem, &want, &got, 8, 7).len(), 1);
    }
}
