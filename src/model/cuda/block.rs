//! What the threads of one block work out together.

use cubek::cubecl;
use cubek::cubecl::prelude::*;

/// Threads of a plane, and planes of a block.
pub const PLANE: u32 = 32;
pub const PLANES: u32 = 8;

/// Threads of a block.
pub const THREADS: u32 = PLANE * PLANES;

/// The same, as a launch takes them.
pub const BLOCK: CubeDim = CubeDim::new_2d(PLANE, PLANES);

/// The sum of the numbers of `x`.
#[cube]
pub fn sum<N: Size>(x: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for k in 0..N::value() {
        sum += x.extract(k);
    }
    sum
}

/// The sum of `x` over all threads of the plane, which may come out of loops of other lengths.
#[cube]
pub fn sum_of_plane(x: f32) -> f32 {
    sync_plane();
    plane_sum(x)
}

/// The highest `x` of all threads of the plane.
#[cube]
pub fn max_of_plane(x: f32) -> f32 {
    sync_plane();
    plane_max(x)
}

/// The sum of `x` over all threads of the block.
#[cube]
pub fn block_sum(x: f32) -> f32 {
    let planes = gather(sum_of_plane(x));
    let mut total = 0.0f32;
    #[unroll]
    for i in 0..comptime!(PLANES as usize) {
        total += planes[i];
    }
    total
}

/// The highest `x` of all threads of the block.
#[cube]
pub fn block_max(x: f32) -> f32 {
    let planes = gather(max_of_plane(x));
    let mut highest = f32::min_value();
    #[unroll]
    for i in 0..comptime!(PLANES as usize) {
        highest = max(highest, planes[i]);
    }
    highest
}

/// `x` of each plane, once all are there.
#[cube]
fn gather(x: f32) -> Shared<[f32]> {
    let mut planes = Shared::<[f32]>::new_slice(comptime!(PLANES as usize));
    if UNIT_POS_PLANE == 0 {
        planes[PLANE_POS as usize] = x;
    }
    sync_cube();
    planes
}
