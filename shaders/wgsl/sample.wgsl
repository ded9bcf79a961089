// One token id per row of logits: adjustments, filters by value, Gumbel maximum. A workgroup serves a row,
// so that a row's result depends on nothing else; every sum has one order.
struct Dims { vocab: u32, lowest: u32 } // the bits of minus infinity, which no shader may spell
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
@group(0) @binding(2) var<storage, read_write> logits: array<f32>; // [logit_rows, vocab]; overwritten
@group(0) @binding(3) var<storage, read> params: array<u32>; // [logit_rows, 12]
@group(0) @binding(4) var<storage, read> offsets: array<u32>; // [logit_rows + 1]
@group(0) @binding(5) var<storage, read> changes: array<u32>; // [capacity, 3] of (token, count, bias)
@group(0) @binding(6) var<storage, read> masks: array<u32>; // [logit_rows, ceil(vocab / 32)], a bit per token
@group(0) @binding(7) var<storage, read_write> out: array<u32>; // [logit_rows]

const LOWEST: f32 = -3.4028234e38;
const ERROR_TOKEN: u32 = 0xffffffffu;
const SEEN: u32 = 0x80000000u;
var<workgroup> values: array<f32, $LANES>;
var<workgroup> indices: array<u32, $LANES>;
var<workgroup> bins: array<f32, $[16*LANES]>; // [digit, lane]
var<workgroup> digits: array<f32, 16>;

fn is_fault(bits: u32) -> bool { return (bits & 0x7fffffffu) > 0x7f800000u || bits == 0x7f800000u; }
fn is_lowest(bits: u32) -> bool { return bits == 0xff800000u; }

// Larger values have larger keys; both zeros have one.
fn key(bits: u32) -> u32 {
    if (bits == 0x80000000u) { return bits; }
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

// Bias, repetition, presence and frequency, on the tokens of this row's list.
fn adjust(row: u32, lane: u32) {
    let repetition = bitcast<f32>(params[row * 12u + 3u]);
    let presence = bitcast<f32>(params[row * 12u + 4u]);
    let frequency = bitcast<f32>(params[row * 12u + 5u]);
    for (var i = offsets[row] + lane; i < offsets[row + 1u]; i += $LANESu) {
        let token = changes[3u * i];
        let count = changes[3u * i + 1u];
        if (token >= dims.vocab) { continue; }
        var l = logits[row * dims.vocab + token] + bitcast<f32>(changes[3u * i + 2u]);
        if ((count & SEEN) != 0u) { l = select(l * repetition, l / repetition, l > 0.0); }
        if ((count & ~SEEN) > 0u) { l -= fma(frequency, f32(count & ~SEEN), presence); }
        logits[row * dims.vocab + token] = l;
    }
}

// The first maximum over lanes, from each lane's own.
fn first_maximum(lane: u32, value: f32, index: u32) -> u32 {
    workgroupBarrier();
    values[lane] = value;
    indices[lane] = index;
    workgroupBarrier();
    var best = values[0];
    var at = indices[0];
    for (var i = 1u; i < $LANESu; i += 1u) {
        if (values[i] > best || (values[i] == best && indices[i] < at)) {
            best = values[i];
            at = indices[i];
        }
    }
    return at;
}

// The smallest key to keep: kept keys larger than it weigh less than the target, with it they reach it.
// Weights are 1 and the target a count, or exponentials and the target a share of their sum.
// Radix search by digits of 4 bits, from the top; keys below `lowest` weigh nothing.
fn search(row: u32, lane: u32, lowest: u32, top: f32, counting: bool, wanted: f32) -> u32 {
    var prefix = 0u;
    var above = 0.0;
    var goal = wanted;
    for (var level = 0u; level < 8u; level += 1u) {
        let shift = 28u - 4u * level;
        //#for b in 0..16
        var bin_$b = 0.0;
        //#end
        for (var i = lane; i < dims.vocab; i += $LANESu) {
            let z = logits[row * dims.vocab + i];
            let bits = bitcast<u32>(z);
            let k = key(bits);
            let inside = level == 0u || ((k ^ prefix) >> ((shift + 4u) & 31u)) == 0u;
            if (inside && k >= lowest && !is_lowest(bits)) {
                let weight = select(exp(z - top), 1.0, counting);
                let digit = (k >> shift) & 15u;
                //#for b in 0..16
                bin_$b += select(0.0, weight, digit == $bu);
                //#end
            }
        }
        workgroupBarrier();
        //#for b in 0..16
        bins[$[b*LANES]u + lane] = bin_$b;
        //#end
        workgroupBarrier();
        for (var b = lane; b < 16u; b += $LANESu) {
            var sum = 0.0;
            for (var i = 0u; i < $LANESu; i += 1u) { sum += bins[b * $LANESu + i]; }
            digits[b] = sum;
        }
        workgroupBarrier();
        if (level == 0u && !counting) {
            var total = 0.0;
            for (var b = 0u; b < 16u; b += 1u) { total += digits[15u - b]; }
            goal = wanted * total;
        }
        // The lowest digit that holds something, unless one before it reaches the goal.
        var chosen = 16u;
        var before = above;
        for (var b = 0u; b < 16u; b += 1u) {
            let d = 15u - b;
            if (digits[d] > 0.0 && (chosen == 16u || before < goal)) {
                chosen = d;
                above = before;
                before = before + digits[d];
            }
        }
        if (chosen == 16u) { return lowest; }
        prefix |= chosen << shift;
    }
    return max(prefix, lowest);
}

fn threefry(key0: u32, key1: u32, counter0: u32, counter1: u32) -> u32 {
    let key2 = key0 ^ key1 ^ 0x1BD11BDAu;
    var a = counter0 + key0;
    var b = counter1 + key1;
    //#for half in 0..3
    a += b; b = ((b << 13u) | (b >> 19u)) ^ a;
    a += b; b = ((b << 15u) | (b >> 17u)) ^ a;
    a += b; b = ((b << 26u) | (b >> 6u)) ^ a;
    a += b; b = ((b << 6u) | (b >> 26u)) ^ a;
    a += key$[(2*half+1)%3]; b += key$[(2*half+2)%3] + $[2*half+1]u;
    //#if half < 2
    a += b; b = ((b << 17u) | (b >> 15u)) ^ a;
    a += b; b = ((b << 29u) | (b >> 3u)) ^ a;
    a += b; b = ((b << 16u) | (b >> 16u)) ^ a;
    a += b; b = ((b << 24u) | (b >> 8u)) ^ a;
    a += key$[(2*half+2)%3]; b += key$[(2*half+3)%3] + $[2*half+2]u;
    //#end
    //#end
    return a;
}

// -ln(-ln(u)), u = (bits + 0.5) / 2^23. Near 1 the inner logarithm is a series in 1 - u, which is exact.
fn gumbel(row: u32, token: u32) -> f32 {
    let p = row * 12u;
    let bits = threefry(params[p + 7u], params[p + 8u], token, params[p + 10u] | (params[p + 9u] << 24u)) >> 9u;
    let u = (f32(bits) + 0.5) * 1.1920928955078125e-7;
    let w = (f32(0x7fffffu - bits) + 0.5) * 1.1920928955078125e-7;
    let series = w * fma(w, fma(w, fma(w, fma(w, fma(w, fma(w, 0.14285714, 0.16666667), 0.2), 0.25), 0.33333333), 0.5), 1.0);
    return -log(select(-log(u), series, w < 0.0625));
}

@compute @workgroup_size($LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wg.y;
    if (row >= live[1]) { return; }
    adjust(row, lane);
    storageBarrier();
    workgroupBarrier();
    let base = row * dims.vocab;
    let temperature = bitcast<f32>(params[row * 12u]);
    var best = LOWEST;
    var at = ERROR_TOKEN;
    var fault = false;
    let mask = params[row * 12u + 11u];
    for (var i = lane; i < dims.vocab; i += $LANESu) {
        var z = logits[base + i];
        fault = fault || is_fault(bitcast<u32>(z));
        if (mask > 0u && ((masks[(mask - 1u) * ((dims.vocab + 31u) / 32u) + i / 32u] >> (i % 32u)) & 1u) == 0u) {
            z = bitcast<f32>(dims.lowest);
            logits[base + i] = z;
        }
        let bits = bitcast<u32>(z);
        if (!is_lowest(bits) && (z > best || at == ERROR_TOKEN)) {
            best = z;
            at = i;
        }
    }
    // A fault in any lane, or no finite value in all.
    workgroupBarrier();
    indices[lane] = u32(fault);
    workgroupBarrier();
    for (var i = 0u; i < $LANESu; i += 1u) { fault = fault || indices[i] != 0u; }
    let greedy = first_maximum(lane, best, at);
    if (temperature == 0.0) {
        if (lane == 0u) { out[row] = select(greedy, ERROR_TOKEN, fault); }
        return;
    }

    let top = logits[base + min(greedy, dims.vocab - 1u)] / temperature;
    workgroupBarrier(); // every lane has read the maximum
    for (var i = lane; i < dims.vocab; i += $LANESu) {
        let z = logits[base + i];
        logits[base + i] = select(z / temperature, z, is_lowest(bitcast<u32>(z)));
    }
    let top_p = bitcast<f32>(params[row * 12u + 1u]);
    let min_p = bitcast<f32>(params[row * 12u + 2u]);
    let top_k = params[row * 12u + 6u];
    var lowest = 0u;
    if (top_k > 0u && top_k < dims.vocab) { lowest = search(row, lane, lowest, top, true, f32(top_k)); }
    if (top_p < 1.0) { lowest = search(row, lane, lowest, top, false, top_p); }
    var least = LOWEST;
    if (min_p > 0.0) { least = log(min_p); }
    best = LOWEST;
    at = ERROR_TOKEN;
    for (var i = lane; i < dims.vocab; i += $LANESu) {
        let z = logits[base + i];
        let bits = bitcast<u32>(z);
        if (!is_lowest(bits) && key(bits) >= lowest && z - top >= least) {
            let noisy = z + gumbel(row, i);
            if (noisy > best || at == ERROR_TOKEN) {
                best = noisy;
                at = i;
            }
        }
    }
    let chosen = first_maximum(lane, best, at);
    if (lane == 0u) { out[row] = select(chosen, ERROR_TOKEN, fault); }
}
