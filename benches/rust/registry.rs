//! The registry by kind of id, threads and live runs: `cargo bench`, or `cargo bench --bench registry look_up`.
//!
//! The numbers in the tree are the threads and, below them, the live runs. Read the throughput: operations of all threads together per second, so that threads which do not hinder each
//! other show as many times that of one as there are cores for them. divan's own `threads` would not do: it times
//! each thread by itself, and where cores are few the threads take turns and look as fast as one.

use divan::Bencher;
use divan::counter::ItemsCount;
use llm_callback::{Registry, RunId};
use std::hint::black_box;
use std::sync::Arc;
use std::thread;

type Callback = Arc<dyn Fn() + Send + Sync>;

/// Of each thread in one sample, which so takes milliseconds: starting the threads hardly shows.
const OPERATIONS: usize = 50_000;
const SAMPLES: u32 = 20;
const THREADS: [usize; 3] = [1, 2, 4];
const LIVE_RUNS: [usize; 3] = [1, 100, 10_000];

fn main() {
    divan::main();
}

/// The `index`-th id of the kind that a host uses: a number from a database, or the text of a UUID.
trait Id {
    fn nth(index: usize) -> RunId;
}

struct Int;
struct Str;

impl Id for Int {
    fn nth(index: usize) -> RunId {
        i64::try_from(index).expect("few runs").into()
    }
}

impl Id for Str {
    fn nth(index: usize) -> RunId {
        format!("0b8e2c1e-6e3a-4b0e-9d6a-{index:012x}").into()
    }
}

fn ids<I: Id>(count: usize) -> Vec<RunId> {
    (0..count).map(I::nth).collect()
}

fn callback() -> Callback {
    Arc::new(|| ())
}

fn registry_of(live: &[RunId]) -> Registry<Callback> {
    let registry = Registry::new();
    for id in live {
        registry.set_callback(id.clone(), callback());
        registry.set_checker(id.clone(), callback());
    }
    registry
}

/// Has each of `threads` threads do `operation` with its own ids, which `ids_of` gives it, in turn.
fn at_once<'a>(
    bencher: Bencher<'_, '_>,
    threads: usize,
    ids_of: impl Fn(usize) -> &'a [RunId] + Sync,
    operation: impl Fn(&RunId) + Sync,
) {
    let work = |thread| {
        for id in ids_of(thread).iter().cycle().take(OPERATIONS) {
            operation(black_box(id));
        }
    };
    bencher
        .counter(ItemsCount::new(threads * OPERATIONS))
        .bench_local(|| {
            thread::scope(|scope| {
                for thread in 0..threads {
                    scope.spawn(move || work(thread));
                }
            });
        });
}

/// What every event does: its run's callback; each thread for all the live runs in turn, from another one on.
#[divan::bench(types = [Int, Str], consts = THREADS, args = LIVE_RUNS, sample_size = 1, sample_count = SAMPLES)]
fn look_up<I: Id, const THREADS: usize>(bencher: Bencher<'_, '_>, live: usize) {
    let twice = [ids::<I>(live), ids::<I>(live)].concat();
    let registry = registry_of(&twice[..live]);
    let ids_of = |thread| &twice[thread * live / THREADS..][..live];
    at_once(bencher, THREADS, ids_of, |id| {
        black_box(registry.callback(id));
    });
}

/// What every run does once, beside the live runs: callback and checker in, and out again.
#[divan::bench(types = [Int, Str], consts = THREADS, args = LIVE_RUNS, sample_size = 1, sample_count = SAMPLES)]
fn register_and_remove<I: Id, const THREADS: usize>(bencher: Bencher<'_, '_>, live: usize) {
    const EACH: usize = 100;
    let ids = ids::<I>(live + THREADS * EACH);
    let (live, own) = ids.split_at(live);
    let (registry, callback) = (registry_of(live), callback());
    let ids_of = |thread| &own[thread * EACH..][..EACH];
    at_once(bencher, THREADS, ids_of, |id| {
        registry.set_callback(id.clone(), Arc::clone(&callback));
        registry.set_checker(id.clone(), Arc::clone(&callback));
        black_box(registry.remove_callback(id));
        black_box(registry.remove_checker(id));
    });
}

/// Threads of one run meet at one shard's lock; of different runs, hardly ever: what the shards are for.
///
/// The callbacks are numbers: copying an `Arc` would have the threads of one run meet at its count too.
mod contention {
    use super::{Bencher, Int, Registry, SAMPLES, THREADS, at_once, black_box, ids};

    fn look_up(bencher: Bencher<'_, '_>, threads: usize, own: impl Fn(usize) -> usize + Sync) {
        let ids = ids::<Int>(threads);
        let registry: Registry<usize> = Registry::new();
        for (index, id) in ids.iter().enumerate() {
            registry.set_callback(id.clone(), index);
        }
        let ids_of = |thread| std::slice::from_ref(&ids[own(thread)]);
        at_once(bencher, threads, ids_of, |id| {
            black_box(registry.callback(id));
        });
    }

    #[divan::bench(args = THREADS, sample_size = 1, sample_count = SAMPLES)]
    fn one_run(bencher: Bencher<'_, '_>, threads: usize) {
        look_up(bencher, threads, |_| 0);
    }

    #[divan::bench(args = THREADS, sample_size = 1, sample_count = SAMPLES)]
    fn different_runs(bencher: Bencher<'_, '_>, threads: usize) {
        look_up(bencher, threads, |thread| thread);
    }
}
