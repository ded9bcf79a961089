// The transform of the engine's `format::hadamard`, of the head of $X at `base`, in place, by a workgroup of $LANES:
// stages of sums and differences within runs of dims.run values, a power of two; nothing where that is 1.
fn hadamard_$X(base: u32, lane: u32) {
    for (var apart = 1u; apart < dims.run; apart *= 2u) {
        storageBarrier();
        let factor = select(1.0, dims.factor, 2u * apart == dims.run);
        for (var i = lane; i < dims.head_dim / 2u; i += $LANESu) {
            let at = base + 2u * i - i % apart;
            let a = $X[at];
            let b = $X[at + apart];
            $X[at] = (a + b) * factor;
            $X[at + apart] = (a - b) * factor;
        }
    }
}
