//! From a variant to a pipeline: compose, validate with naga, read the bindings back by name, and the one
//! place where shader modules are made.
//!
//! Bindings and parameters are matched by their names in the WGSL, so nothing about them is written twice.

use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, StorageAccess, TypeInner};

use crate::source::compose;
use crate::variants::Variant;

/// A composed and validated kernel.
pub struct Checked {
    /// WGSL.
    pub text: String,
    /// naga's form of it.
    pub module: naga::Module,
    /// What validation found out.
    pub info: naga::valid::ModuleInfo,
}

/// Storage buffers that attention binds over a cache with scales. All other kernels stay within WebGPU's 8.
pub const SCALED_STORAGE_BUFFERS: u32 = 10;

/// Composes and validates. An error is a mistake of ours; it names the variant.
pub fn check(variant: &Variant, subgroups: bool) -> Result<Checked, String> {
    let fail = |what: String| format!("kernel {}: {what}", variant.label());
    let text = compose(variant.stem, &variant.defines).map_err(fail)?;
    let module = naga::front::wgsl::parse_str(&text).map_err(|e| fail(e.emit_to_string(&text)))?;
    // Core WGSL packs and unpacks f16; arithmetic on it would be another capability.
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, subgroups);
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    if subgroups {
        validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
        validator.subgroup_operations(naga::valid::SubgroupOperationSet::all());
    }
    let info = validator.validate(&module).map_err(|e| fail(e.emit_to_string(&text)))?;
    Ok(Checked { text, module, info })
}

/// A binding of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    /// Name of the global.
    pub name: String,
    /// Its number in group 0.
    pub index: u32,
    /// How it is bound.
    pub kind: BindingKind,
}

/// Kinds of bindings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindingKind {
    /// The `dims` uniform.
    Dims,
    /// A read-only storage buffer.
    Read,
    /// A storage buffer that is written.
    Write,
}

/// What the host has to provide.
#[derive(Clone, Debug, PartialEq)]
pub struct Interface {
    /// Bindings of group 0.
    pub bindings: Vec<Binding>,
    /// Names of the 32-bit members of `dims`, in order, 4 bytes apart.
    pub dims: Vec<String>,
}

/// Reads the interface of a checked kernel.
pub fn interface(checked: &Checked) -> Interface {
    let module = &checked.module;
    let mut out = Interface { bindings: Vec::new(), dims: Vec::new() };
    for (_, global) in module.global_variables.iter() {
        let Some(binding) = &global.binding else { continue };
        let kind = match global.space {
            AddressSpace::Uniform => BindingKind::Dims,
            AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => BindingKind::Write,
            _ => BindingKind::Read,
        };
        if let (BindingKind::Dims, TypeInner::Struct { members, .. }) = (kind, &module.types[global.ty].inner) {
            for (i, member) in members.iter().enumerate() {
                assert_eq!(member.offset, 4 * i as u32, "members of `dims` are 32-bit scalars");
                out.dims.push(member.name.clone().expect("WGSL members have names"));
            }
        }
        let name = global.name.clone().expect("WGSL bindings have names");
        out.bindings.push(Binding { name, index: binding.binding, kind });
    }
    out
}

/// A compiled kernel.
pub struct Pipeline {
    /// wgpu's.
    pub pipeline: wgpu::ComputePipeline,
    /// Layout of group 0.
    pub layout: wgpu::BindGroupLayout,
    /// What to bind.
    pub interface: Interface,
}

/// Makes the pipeline of a checked kernel. This is the one place where shader modules are created.
pub fn pipeline(device: &wgpu::Device, variant: &Variant, checked: &Checked) -> Pipeline {
    let label = variant.label();
    let interface = interface(checked);
    let entries: Vec<wgpu::BindGroupLayoutEntry> = interface.bindings.iter().map(layout_entry).collect();
    let layout = device
        .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(variant.stem), entries: &entries });
    let checks = wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() };
    let source = wgpu::ShaderModuleDescriptor {
        label: Some(&label),
        source: wgpu::ShaderSource::Wgsl(checked.text.as_str().into()),
    };
    // SAFETY: bounds checks stay on. Loop bounding is off (it stops drivers from unrolling), which asks for
    // loops that end: every loop of ours runs over a constant or over a value that the planner checked.
    let module = unsafe { device.create_shader_module_trusted(source, checks) };
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(variant.stem),
        bind_group_layouts: &[Some(&layout)],
        ..Default::default()
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(&label),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        // Kernels write workgroup memory before they read it.
        compilation_options: wgpu::PipelineCompilationOptions {
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        },
        cache: None,
    });
    Pipeline { pipeline, layout, interface }
}

fn layout_entry(binding: &Binding) -> wgpu::BindGroupLayoutEntry {
    let ty = match binding.kind {
        BindingKind::Dims => wgpu::BufferBindingType::Uniform,
        BindingKind::Read => wgpu::BufferBindingType::Storage { read_only: true },
        BindingKind::Write => wgpu::BufferBindingType::Storage { read_only: false },
    };
    wgpu::BindGroupLayoutEntry {
        binding: binding.index,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variants::{Profile, all};

    /// Storage buffers a kernel may have on every device (WebGPU's default limit).
    fn storage_buffers(variant: &Variant) -> usize {
        let scaled = variant.stem.starts_with("attention") && variant.defines.get("KV").is_some_and(|kv| kv == "3");
        if scaled { SCALED_STORAGE_BUFFERS as usize } else { 8 }
    }

    fn translate(variant: &Variant, checked: &Checked) -> Result<(), String> {
        let fail = |target: &str, e: String| format!("{}: {target}: {e}", variant.label());
        let options = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
        naga::back::spv::write_vec(&checked.module, &checked.info, &options, None)
            .map_err(|e| fail("SPIR-V", e.to_string()))?;
        let mut options = naga::back::msl::Options { lang_version: (2, 4), ..Default::default() };
        options.fake_missing_bindings = true;
        naga::back::msl::write_string(&checked.module, &checked.info, &options, &Default::default())
            .map_err(|e| fail("MSL", e.to_string()))?;
        let options = naga::back::hlsl::Options {
            shader_model: naga::back::hlsl::ShaderModel::V6_0,
            fake_missing_bindings: true,
            ..Default::default()
        };
        let mut text = String::new();
        naga::back::hlsl::Writer::new(&mut text, &options, &Default::default())
            .write(&checked.module, &checked.info, None)
            .map_err(|e| fail("HLSL", e.to_string()))?;
        Ok(())
    }

    #[test]
    fn every_variant_is_valid_and_translates_to_every_target() {
        let mut failures = Vec::new();
        let mut count = 0;
        for profile in Profile::ALL {
            for variant in all(profile) {
                count += 1;
                match check(&variant, profile.subgroups()) {
                    Err(e) => failures.push(e),
                    Ok(checked) => {
                        failures.extend(translate(&variant, &checked).err());
                        let storage =
                            interface(&checked).bindings.iter().filter(|b| b.kind != BindingKind::Dims).count();
                        if storage > storage_buffers(&variant) {
                            failures.push(format!("{}: {storage} storage buffers", variant.label()));
                        }
                    }
                }
            }
        }
        let mut seen = std::collections::HashSet::new();
        let one_a_stem: Vec<&str> =
            failures.iter().map(String::as_str).filter(|f| seen.insert(f.split(' ').nth(1).unwrap_or(f))).collect();
        assert!(failures.is_empty(), "{} of {count}:\n{}", failures.len(), one_a_stem.join("\n"));
        println!("{count} variants");
    }
}
