//! A GGUF reader (versions 2 and 3, little-endian) that believes nothing it reads.
//!
//! It works on the bytes of a memory map. Every count, length, offset, type and alignment is checked
//! before it is used, a tensor's range is checked against the file before anyone can slice it, and what
//! is allocated is bounded by [`MAX_KEYS`] and [`MAX_TENSORS`], never by a number in the file. Arrays
//! and strings stay where they are and are borrowed.
//!
//! Format: ggml's `docs/gguf.md`. Not supported, and refused with a message: version 1, big-endian
//! files, arrays of arrays.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use crate::format::Format;

/// Most metadata entries a file may have (real ones have below a hundred).
pub const MAX_KEYS: u64 = 1 << 16;
/// Most tensors a file may have (the largest real models have some thousands).
pub const MAX_TENSORS: u64 = 1 << 16;
/// Longest key or tensor name, in bytes.
const MAX_NAME: u64 = 1024;

/// What is wrong with a file, and with which field of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Key, tensor name or header field.
    pub field: String,
    /// What is wrong, in words.
    pub message: String,
}

impl Fault {
    /// A fault of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Fault {
        Fault { field: field.into(), message: message.into() }
    }
}

type Result<T> = std::result::Result<T, Fault>;

/// Type of a metadata value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are GGUF's
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    const ALL: [ValueType; 13] = {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    fn from_code(code: u32) -> Option<ValueType> {
        Self::ALL.get(code as usize).copied()
    }
    /// The number that stands for it in a file.
    pub fn code(self) -> u32 {
        self as u32
    }
    /// Bytes of a scalar; `None` for strings and arrays.
    fn size(self) -> Option<usize> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }
}

/// A metadata value, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Any signed or unsigned integer.
    Int(i128),
    /// F32 or F64.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// UTF-8 text.
    Str(&'a str),
    /// An array of scalars or strings.
    Array(Array<'a>),
}

/// An array, borrowed from the file; its elements were checked when the file was opened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    /// Type of the elements.
    pub elem: ValueType,
    /// Number of elements.
    pub len: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The elements, in order.
    pub fn iter(self) -> impl Iterator<Item = Value<'a>> {
        let mut cursor = Cursor { bytes: self.bytes, at: 0 };
        (0..self.len).map_while(move |_| cursor.scalar(self.elem, "array").ok())
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Int(v) => write!(f, "{v}"),
            Value::Float(v) => write!(f, "{v}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::Str(v) => f.write_str(v),
            Value::Array(a) => {
                let shown: Vec<String> = a.iter().take(4).map(|v| v.to_string()).collect();
                let more = if a.len > 4 { ", …" } else { "" };
                write!(f, "[{}{more}] ({} × {:?})", shown.join(", "), a.len, a.elem)
            }
        }
    }
}

struct Entry {
    key: Range<usize>,
    value_type: ValueType,
    value_at: usize,
}

/// One tensor's place and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    name: Range<usize>,
    /// Extent per dimension, fastest first; 1 to 4 of them.
    dims: [usize; 4],
    n_dims: usize,
    /// Storage format.
    pub format: Format,
    /// Byte range in the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Extents, fastest first: `[K, N]` for a matrix of N rows.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.n_dims]
    }
}

/// The table of contents of a GGUF file. Holds offsets only; give it the same bytes it was read from.
pub struct Gguf {
    /// 2 or 3.
    pub version: u32,
    /// Alignment of tensor data, in bytes.
    pub alignment: usize,
    entries: Vec<Entry>,
    tensors: Vec<TensorInfo>,
}

impl Gguf {
    /// Reads and checks the header, every metadata value and every tensor's range.
    pub fn read(bytes: &[u8]) -> Result<Gguf> {
        let mut c = Cursor { bytes, at: 0 };
        if c.take(4, "magic")? != b"GGUF" {
            return Err(Fault::new("magic", "not a GGUF file"));
        }
        let version = c.u32("version")?;
        if version.swap_bytes() == 2 || version.swap_bytes() == 3 {
            return Err(Fault::new("version", "a big-endian GGUF file; convert it to little-endian"));
        }
        if version != 2 && version != 3 {
            return Err(Fault::new("version", format!("GGUF version {version}; 2 and 3 are supported")));
        }
        let n_tensors = c.count("tensor_count", MAX_TENSORS, 8 + 1 + 4 + 8 + 4 + 8)?;
        let n_keys = c.count("metadata_kv_count", MAX_KEYS, 8 + 1 + 4 + 1)?;
        let entries = read_entries(&mut c, n_keys)?;
        let mut gguf = Gguf { version, alignment: 32, entries, tensors: Vec::new() };
        gguf.alignment = gguf.read_alignment(bytes)?;
        gguf.tensors = read_tensors(&mut c, n_tensors, gguf.alignment)?;
        Ok(gguf)
    }

    fn read_alignment(&self, bytes: &[u8]) -> Result<usize> {
        const KEY: &str = "general.alignment";
        match self.get(bytes, KEY) {
            None => Ok(32),
            Some(Value::Int(a)) if (1..=1 << 20).contains(&a) && (a as u32).is_power_of_two() => Ok(a as usize),
            Some(Value::Int(a)) => Err(Fault::new(KEY, format!("{a} is no power of two between 1 and 1048576"))),
            Some(_) => Err(Fault::new(KEY, "not an integer")),
        }
    }

    /// The value of `key`.
    pub fn get<'a>(&self, bytes: &'a [u8], key: &str) -> Option<Value<'a>> {
        let entry = self.entries.iter().find(|e| bytes.get(e.key.clone()) == Some(key.as_bytes()))?;
        value_at(bytes, entry)
    }

    /// Every key and value, in the file's order.
    pub fn entries<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.entries.iter().filter_map(|e| Some((str_at(bytes, &e.key)?, value_at(bytes, e)?)))
    }

    /// Every tensor and its name, in the file's order.
    pub fn tensors<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = (&'a str, &'a TensorInfo)> {
        self.tensors.iter().filter_map(|t| Some((str_at(bytes, &t.name)?, t)))
    }
}

fn str_at<'a>(bytes: &'a [u8], range: &Range<usize>) -> Option<&'a str> {
    std::str::from_utf8(bytes.get(range.clone())?).ok()
}

fn value_at<'a>(bytes: &'a [u8], entry: &Entry) -> Option<Value<'a>> {
    Cursor { bytes, at: entry.value_at }.value(entry.value_type, "").ok()
}

fn read_entries(c: &mut Cursor<'_>, count: usize) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut seen = HashSet::new();
    for i in 0..count {
        let what = format!("metadata key {i}");
        let (key, name) = c.name(&what)?;
        if !seen.insert(name) {
            return Err(Fault::new(name, "this key appears twice"));
        }
        let code = c.u32(name)?;
        let value_type =
            ValueType::from_code(code).ok_or_else(|| Fault::new(name, format!("unknown value type {code}")))?;
        let value_at = c.at;
        c.value(value_type, name)?;
        entries.push(Entry { key, value_type, value_at });
    }
    Ok(entries)
}

fn read_tensors(c: &mut Cursor<'_>, count: usize, alignment: usize) -> Result<Vec<TensorInfo>> {
    let mut tensors = Vec::new();
    let mut seen = HashSet::new();
    for i in 0..count {
        let what = format!("tensor {i}");
        let (range, name) = c.name(&what)?;
        if !seen.insert(name) {
            return Err(Fault::new(name, "this tensor appears twice"));
        }
        tensors.push(read_tensor(c, range, name, alignment)?);
    }
    // Data starts at the next aligned byte; offsets so far are relative to it.
    let data = c.at.checked_next_multiple_of(alignment).ok_or_else(|| Fault::new("general.alignment", "overflows"))?;
    for t in &mut tensors {
        let name = || String::from_utf8_lossy(&c.bytes[t.name.clone()]).into_owned();
        let range = data.checked_add(t.range.start).zip(data.checked_add(t.range.end));
        match range {
            Some((start, end)) if end <= c.bytes.len() => t.range = start..end,
            _ => {
                let has = c.bytes.len().saturating_sub(data);
                let why =
                    format!("needs data bytes {}..{}, the file has {has} (truncated?)", t.range.start, t.range.end);
                return Err(Fault::new(name(), why));
            }
        }
    }
    Ok(tensors)
}

/// One tensor header; its `range` is still relative to the start of the data.
fn read_tensor(c: &mut Cursor<'_>, name: Range<usize>, field: &str, alignment: usize) -> Result<TensorInfo> {
    let n_dims = c.u32(field)? as usize;
    if !(1..=4).contains(&n_dims) {
        return Err(Fault::new(field, format!("{n_dims} dimensions; 1 to 4 are possible")));
    }
    let mut dims = [1usize; 4];
    let mut elements = 1usize;
    for dim in &mut dims[..n_dims] {
        let extent = c.u64(field)?;
        *dim = usize::try_from(extent)
            .ok()
            .filter(|&d| d > 0)
            .ok_or_else(|| Fault::new(field, format!("a dimension of {extent}")))?;
        elements =
            elements.checked_mul(*dim).ok_or_else(|| Fault::new(field, "the product of its dimensions overflows"))?;
    }
    let code = c.u32(field)?;
    let format = tensor_format(code)
        .ok_or_else(|| Fault::new(field, format!("tensor type {code}{} is not supported", type_name(code))))?;
    let offset = c.u64(field)?;
    let offset = usize::try_from(offset).map_err(|_| Fault::new(field, format!("offset {offset}")))?;
    if offset % alignment != 0 {
        return Err(Fault::new(field, format!("offset {offset} is no multiple of the alignment {alignment}")));
    }
    if dims[0] % format.block_len() != 0 {
        let why =
            format!("rows of {} elements are no whole number of {format} blocks ({})", dims[0], format.block_len());
        return Err(Fault::new(field, why));
    }
    let end = format.bytes_for(elements).and_then(|n| offset.checked_add(n));
    let end = end.ok_or_else(|| Fault::new(field, "its size in bytes overflows"))?;
    Ok(TensorInfo { name, dims, n_dims, format, range: offset..end })
}

/// ggml's type numbers, as far as we read them.
pub const TENSOR_TYPES: [(u32, Format); 11] = [
    (0, Format::F32),
    (1, Format::F16),
    (2, Format::Q4_0),
    (3, Format::Q4_1),
    (6, Format::Q5_0),
    (7, Format::Q5_1),
    (8, Format::Q8_0),
    (12, Format::Q4K),
    (13, Format::Q5K),
    (14, Format::Q6K),
    (30, Format::BF16),
];

fn tensor_format(code: u32) -> Option<Format> {
    TENSOR_TYPES.iter().find(|(c, _)| *c == code).map(|(_, f)| *f)
}

/// Names of the formats that one meets and that we do not read, for the message.
fn type_name(code: u32) -> &'static str {
    match code {
        10 => " (Q2_K)",
        11 => " (Q3_K)",
        15 => " (Q8_K)",
        16..=23 | 29 => " (an IQ format)",
        24..=28 => " (integer or F64)",
        34 | 35 => " (a ternary format)",
        39 => " (MXFP4)",
        _ => "",
    }
}

/// A position in the file; every step forward is checked.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize, field: &str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| {
            Fault::new(
                field,
                format!("the file ends at byte {}, {n} more were expected at {}", self.bytes.len(), self.at),
            )
        })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, field)?);
        Ok(out)
    }
    fn u32(&mut self, field: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }
    fn u64(&mut self, field: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }
    /// A number of things of at least `min_bytes` each, which must fit in the rest of the file.
    fn count(&mut self, field: &str, max: u64, min_bytes: usize) -> Result<usize> {
        let n = self.u64(field)?;
        let rest = (self.bytes.len() - self.at) as u64;
        if n > max || n.saturating_mul(min_bytes as u64) > rest {
            return Err(Fault::new(field, format!("{n} is more than this file can hold ({rest} bytes are left)")));
        }
        Ok(n as usize)
    }
    fn str(&mut self, field: &str) -> Result<&'a str> {
        let n = self.u64(field)?;
        let n = usize::try_from(n).map_err(|_| Fault::new(field, format!("a string of {n} bytes")))?;
        let bytes = self.take(n, field)?;
        std::str::from_utf8(bytes).map_err(|_| Fault::new(field, "a string that is not UTF-8"))
    }
    /// A key or tensor name, and where it stands.
    fn name(&mut self, what: &str) -> Result<(Range<usize>, &'a str)> {
        let name = self.str(what)?;
        if name.is_empty() || name.len() as u64 > MAX_NAME {
            return Err(Fault::new(what, format!("a name of {} bytes", name.len())));
        }
        Ok((self.at - name.len()..self.at, name))
    }
    fn scalar(&mut self, value_type: ValueType, field: &str) -> Result<Value<'a>> {
        use ValueType::*;
        Ok(match value_type {
            U8 => Value::Int(u8::from_le_bytes(self.array(field)?).into()),
            I8 => Value::Int(i8::from_le_bytes(self.array(field)?).into()),
            U16 => Value::Int(u16::from_le_bytes(self.array(field)?).into()),
            I16 => Value::Int(i16::from_le_bytes(self.array(field)?).into()),
            U32 => Value::Int(u32::from_le_bytes(self.array(field)?).into()),
            I32 => Value::Int(i32::from_le_bytes(self.array(field)?).into()),
            U64 => Value::Int(u64::from_le_bytes(self.array(field)?).into()),
            I64 => Value::Int(i64::from_le_bytes(self.array(field)?).into()),
            F32 => Value::Float(f32::from_le_bytes(self.array(field)?).into()),
            F64 => Value::Float(f64::from_le_bytes(self.array(field)?)),
            Bool => match self.array::<1>(field)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(Fault::new(field, format!("a boolean of {other}"))),
            },
            String => Value::Str(self.str(field)?),
            Array => return Err(Fault::new(field, "an array inside an array is not supported")),
        })
    }
    fn value(&mut self, value_type: ValueType, field: &str) -> Result<Value<'a>> {
        if value_type != ValueType::Array {
            return self.scalar(value_type, field);
        }
        let code = self.u32(field)?;
        let elem =
            ValueType::from_code(code).ok_or_else(|| Fault::new(field, format!("unknown element type {code}")))?;
        let len = self.count(field, u64::MAX, elem.size().unwrap_or(8))?;
        let start = self.at;
        match elem.size() {
            // `count` has shown that the product fits the file.
            Some(size) if elem != ValueType::Bool => drop(self.take(len * size, field)?),
            _ => (0..len).try_for_each(|_| self.scalar(elem, field).map(drop))?,
        }
        Ok(Value::Array(Array { elem, len, bytes: &self.bytes[start..self.at] }))
    }
}
