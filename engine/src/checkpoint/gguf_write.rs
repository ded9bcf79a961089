//! Writes small GGUF files. The engine never needs one; tests, fixtures and problem generators do.

use crate::checkpoint::gguf::{TENSOR_TYPES, ValueType};
use crate::format::Format;

/// A metadata value to write.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the names are GGUF's
pub enum Meta {
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

impl From<&str> for Meta {
    fn from(v: &str) -> Meta {
        Meta::Str(v.to_string())
    }
}

/// A tensor to write.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Extents, fastest first.
    pub dims: Vec<u64>,
    /// Storage format.
    pub format: Format,
    /// Encoded data.
    pub bytes: Vec<u8>,
}

/// A GGUF file in the making. Its parts are public, so that a test can spoil any of them.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    /// Metadata, in order.
    pub meta: Vec<(String, Meta)>,
    /// Tensors, in order.
    pub tensors: Vec<Tensor>,
}

impl Writer {
    /// Appends a metadata entry.
    pub fn set(&mut self, key: impl Into<String>, value: Meta) -> &mut Self {
        self.meta.push((key.into(), value));
        self
    }
    /// Appends a tensor of `dims` (fastest first), encoding `values`.
    pub fn tensor(&mut self, name: impl Into<String>, dims: &[usize], format: Format, values: &[f32]) -> &mut Self {
        assert_eq!(dims.iter().product::<usize>(), values.len());
        let mut bytes = Vec::new();
        format.encode(values, &mut bytes);
        let dims = dims.iter().map(|&d| d as u64).collect();
        self.tensors.push(Tensor { name: name.into(), dims, format, bytes });
        self
    }
    /// The file, version 3, alignment 32.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.meta.len() as u64).to_le_bytes());
        for (key, value) in &self.meta {
            put_str(&mut out, key);
            put_value(&mut out, value);
        }
        let mut offset = 0;
        for t in &self.tensors {
            put_str(&mut out, &t.name);
            out.extend((t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(type_code(t.format).to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = (offset + t.bytes.len()).next_multiple_of(32);
        }
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&t.bytes);
        }
        out
    }
}

fn type_code(format: Format) -> u32 {
    TENSOR_TYPES.iter().find(|(_, f)| *f == format).map(|(c, _)| *c).expect("a format of GGUF")
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_type(out: &mut Vec<u8>, t: ValueType) {
    out.extend(t.code().to_le_bytes());
}

fn put_array(out: &mut Vec<u8>, elem: ValueType, len: usize) {
    put_type(out, ValueType::Array);
    put_type(out, elem);
    out.extend((len as u64).to_le_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Meta) {
    let mut scalar = |t, bytes: &[u8]| {
        put_type(out, t);
        out.extend(bytes);
    };
    match value {
        Meta::U32(v) => scalar(ValueType::U32, &v.to_le_bytes()),
        Meta::I32(v) => scalar(ValueType::I32, &v.to_le_bytes()),
        Meta::U64(v) => scalar(ValueType::U64, &v.to_le_bytes()),
        Meta::F32(v) => scalar(ValueType::F32, &v.to_le_bytes()),
        Meta::Bool(v) => scalar(ValueType::Bool, &[u8::from(*v)]),
        Meta::Str(v) => {
            put_type(out, ValueType::String);
            put_str(out, v);
        }
        Meta::Strs(v) => {
            put_array(out, ValueType::String, v.len());
            v.iter().for_each(|s| put_str(out, s));
        }
        Meta::I32s(v) => {
            put_array(out, ValueType::I32, v.len());
            v.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Meta::F32s(v) => {
            put_array(out, ValueType::F32, v.len());
            v.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
    }
}
