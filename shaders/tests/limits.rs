//! What happens at a device's limits: tensors cut at the binding limit, and faults that are errors.

use ponder_engine::backend::{Backend, Bound, check};
use ponder_engine::error::{DeviceFault, Error};
use ponder_engine::format::{Format, KvFormat};
use ponder_engine::op::problem::problems;
use ponder_engine::op::{GatherRows, Op};
use ponder_engine::program::{Elem, Program, Role, SlotDecl};
use ponder_shaders::{WgpuBackend, WgpuOptions, adapters};

fn backend(max_binding_bytes: Option<u64>) -> Option<WgpuBackend> {
    if adapters().is_empty() {
        println!("SKIP: no Vulkan, Metal or DX12 adapter (Debian: mesa-vulkan-drivers)");
        return None;
    }
    let options = WgpuOptions { max_binding_bytes, ..WgpuOptions::default() };
    Some(WgpuBackend::new(options).expect("a listed adapter opens"))
}

fn fault<T>(result: Result<T, Error>) -> DeviceFault {
    match result {
        Err(Error::Device { what, .. }) => what,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it went well"),
    }
}

#[test]
fn tensors_above_the_binding_limit_are_cut_without_a_trace() {
    let (Some(mut whole), Some(mut cut)) = (backend(None), backend(Some(64 << 10))) else { return };
    let mut count = 0;
    for problem in problems(4, 3) {
        let weights = problem.name.starts_with("embed")
            || problem.name.starts_with("linear")
            || problem.name.starts_with("gated");
        if !weights || !["F32", "Q4_1", "Q6_K"].iter().any(|f| problem.name.contains(f)) {
            continue;
        }
        count += 1;
        let want = check::run(&mut whole, &problem).expect("runs whole");
        assert_eq!(check::run(&mut cut, &problem).expect("runs cut"), want, "{}", problem.name);
    }
    assert!(count >= 9, "{count} problems");
}

#[test]
fn a_cache_above_the_binding_limit_is_refused_by_name() {
    let Some(mut backend) = backend(Some(1 << 20)) else { return };
    let shape = vec![1024, 16, 8, 128];
    let decl = SlotDecl { name: "k_cache.7".into(), role: Role::Kv, elem: Elem::Kv(KvFormat::F16), shape };
    let fault = fault(backend.alloc(&decl));
    assert!(matches!(&fault, DeviceFault::Unsupported(what) if what.contains("k_cache.7")), "{fault}");
}

fn small_program() -> Program {
    let mut p = Program::new("small", 4, 4);
    let x = p.slot("x", Role::Input, Elem::F32, &[4, 8]);
    let index = p.slot("index", Role::Input, Elem::U32, &[4]);
    let out = p.slot("out", Role::Output, Elem::F32, &[4, 8]);
    p.push(Op::from(GatherRows { x, index, out }));
    p
}

fn bind(backend: &mut WgpuBackend, program: &Program) -> Bound<<WgpuBackend as Backend>::Buffer> {
    program.slots.iter().map(|d| (d.name.clone(), backend.alloc(d).expect("memory"))).collect()
}

#[test]
fn mistakes_are_rejected_by_name() {
    let Some(mut backend) = backend(None) else { return };
    let program = small_program();
    let mut bound = bind(&mut backend, &program);
    bound.remove("index");
    let what = fault(backend.compile(&program, &bound));
    assert!(matches!(&what, DeviceFault::Rejected(w) if w.contains("index")), "{what}");
    let x = bound["x"].clone();
    assert!(matches!(fault(backend.write(&x, &[0; 200])), DeviceFault::Rejected(_)));
    let shape = vec![8];
    let vector = SlotDecl { name: "v".into(), role: Role::Weight, elem: Elem::Weight(Format::F16), shape };
    assert!(matches!(fault(backend.load(&vector, &[0; 16])), DeviceFault::Unsupported(_)));
}

#[test]
fn a_lost_device_is_an_error_at_every_call() {
    let Some(mut backend) = backend(None) else { return };
    let program = small_program();
    let bound = bind(&mut backend, &program);
    let plan = backend.compile(&program, &bound).expect("compiles");
    backend.write(&bound["live"], &[0; 8]).expect("writes");
    let pending = backend.launch(&plan).expect("launches");
    backend.wait(pending).expect("ends");
    backend.destroy();
    let launched = backend.launch(&plan).and_then(|pending| backend.wait(pending));
    assert!(matches!(fault(launched), DeviceFault::Lost(_)));
    let mut out = [0u8; 4];
    assert!(matches!(fault(backend.read(&bound["out"], &mut out)), DeviceFault::Lost(_) | DeviceFault::Rejected(_)));
    assert!(backend.alloc(&program.slots[1]).is_err());
}

#[test]
fn an_unknown_adapter_is_named_with_those_that_exist() {
    let options = WgpuOptions { adapter: Some("no such adapter".into()), ..WgpuOptions::default() };
    let message = WgpuBackend::new(options).err().expect("no such adapter").to_string();
    assert!(message.contains("adapter"), "{message}");
}
