// One group of 32 weights of $R rows against $T tokens: the sum of a group is a chain of `fma` upwards
// on unscaled weights, then one `fma` by the scale. Every kernel that multiplies by weights does
// exactly this, so that a row's bits do not depend on which of them served it.
{
//#for r in 0..R
    let w_$r = $W_load(panel_$r, group, lane_row);
//#end
//#for h in 0..HALVES
    //#for r in 0..R
    //#for t in 0..T
    //#if SCALED
    var sum_$r_$t_$h = 0.0;
    //#else
    var sum_$r_$t_$h = $W_total_$r_$t;
    //#end
    //#end
    //#end
    //#for v in 0..8/HALVES
    {
        //#for r in 0..R
        let a_$r = $W_quad_$[h*8/HALVES+v](w_$r);
        //#end
        //#for t in 0..T
        //#if BROADCAST
        let x_$t = subgroupBroadcast(mine_$t, $[h*8/HALVES+v]u);
        //#else
        let x_$t = x_quad(first_row + $tu, group * 8u + $[h*8/HALVES+v]u);
        //#end
        //#for r in 0..R
        sum_$r_$t_$h = fma(a_$r.x, x_$t.x, sum_$r_$t_$h);
        sum_$r_$t_$h = fma(a_$r.y, x_$t.y, sum_$r_$t_$h);
        sum_$r_$t_$h = fma(a_$r.z, x_$t.z, sum_$r_$t_$h);
        sum_$r_$t_$h = fma(a_$r.w, x_$t.w, sum_$r_$t_$h);
        //#end
        //#end
    }
    //#end
    //#for r in 0..R
    //#if SCALED
    let scale_$r_$h = $W_scale_$h(w_$r);
    //#end
    //#for t in 0..T
    //#if SCALED
    $W_total_$r_$t = fma(scale_$r_$h, sum_$r_$t_$h, $W_total_$r_$t);
    //#else
    $W_total_$r_$t = sum_$r_$t_$h;
    //#end
    //#end
    //#end
//#end
//#if MIN
//#for r in 0..R
    let min_$r = $W_min(w_$r);
    //#for t in 0..T
    $W_total_$r_$t = fma(min_$r, xsum_$t, $W_total_$r_$t);
    //#end
//#end
//#end
}
