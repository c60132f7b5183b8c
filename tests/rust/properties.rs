//! The registry against a plain map: any sequence of operations gives the same answers.

use llm_callback::{Registry, RunId};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

#[derive(Clone, Debug)]
enum Operation {
    SetCallback(RunId, u8),
    SetChecker(RunId, u8),
    RemoveCallback(RunId),
    RemoveChecker(RunId),
    Callback(RunId),
    Checker(RunId),
    Clear,
}

const MAX_OPERATIONS: usize = if cfg!(miri) { 20 } else { 60 };

fn run_id() -> impl Strategy<Value = RunId> {
    prop_oneof![
        (0..4_i64).prop_map(RunId::from),
        any::<i64>().prop_map(RunId::from),
        "[0-3]|\\PC{0,3}".prop_map(RunId::from),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (run_id(), any::<u8>()).prop_map(|(id, value)| Operation::SetCallback(id, value)),
        4 => (run_id(), any::<u8>()).prop_map(|(id, value)| Operation::SetChecker(id, value)),
        3 => run_id().prop_map(Operation::RemoveCallback),
        3 => run_id().prop_map(Operation::RemoveChecker),
        3 => run_id().prop_map(Operation::Callback),
        3 => run_id().prop_map(Operation::Checker),
        1 => Just(Operation::Clear),
    ]
}

fn sorted(mut ids: Vec<RunId>) -> Vec<RunId> {
    ids.sort();
    ids
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Callbacks and checkers are two independent maps from run id to the last thing registered.
    #[test]
    fn behaves_as_two_maps(operations in prop::collection::vec(operation(), 0..MAX_OPERATIONS)) {
        let registry: Registry<u8, u8> = Registry::new();
        let mut callbacks = HashMap::new();
        let mut checkers = HashMap::new();
        for operation in operations {
            match operation {
                Operation::SetCallback(id, value) => {
                    prop_assert_eq!(registry.set_callback(id.clone(), value), callbacks.insert(id, value));
                }
                Operation::SetChecker(id, value) => {
                    prop_assert_eq!(registry.set_checker(id.clone(), value), checkers.insert(id, value));
                }
                Operation::RemoveCallback(id) => {
                    prop_assert_eq!(registry.remove_callback(&id), callbacks.remove(&id));
                }
                Operation::RemoveChecker(id) => {
                    prop_assert_eq!(registry.remove_checker(&id), checkers.remove(&id));
                }
                Operation::Callback(id) => {
                    prop_assert_eq!(registry.callback(&id), callbacks.get(&id).copied());
                }
                Operation::Checker(id) => {
                    prop_assert_eq!(registry.checker(&id), checkers.get(&id).copied());
                }
                Operation::Clear => {
                    prop_assert_eq!(registry.take_all().len(), callbacks.keys().chain(checkers.keys()).collect::<HashSet<_>>().len());
                    callbacks.clear();
                    checkers.clear();
                }
            }
            let size = registry.size();
            prop_assert_eq!((size.callbacks, size.checkers), (callbacks.len(), checkers.len()));
        }
        prop_assert_eq!(sorted(registry.callback_ids()), sorted(callbacks.into_keys().collect()));
        prop_assert_eq!(sorted(registry.checker_ids()), sorted(checkers.into_keys().collect()));
    }
}
