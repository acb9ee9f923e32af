//! Windows: what a socket that is used again completes arrives under the key of its first
//! association. The engine takes the session from the operation's token, and never looks at a key.
//!
//! The same clients are served twice: as built, and with each completion's session taken from its
//! key, as a server that trusts it would. The first must be right, and the second must not be: so
//! the check is known to see the fault that it is there for.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::stale::Stage;
use crate::driver::Token;
use crate::driver::sim::{SimRead, SimSystem};
use crate::shard::Profile;

/// How a completion's session is found.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Token,
    Key,
}

/// One client after the other, more of them than slots: each must get back the byte that it sent.
/// Returns how often a key named another session than the token did.
fn serve(clients: u8, by: By) -> Result<u32, String> {
    let system = SimSystem::windows_workstation(1 << 30);
    let mut stage = Stage::new(Profile::Connections, system, false);
    let mut wrong = 0;
    for client in 0..clients {
        // The handler closes at `x` and `y`, waits at `z`, and sends much at `s`.
        let sent = [b'0' + client % 10];
        let mut peer = stage.kernel.connect(super::ship::here());
        let mut heard = SimRead::Nothing;
        let mut got = [0; 8];
        let mut written = false;
        for _ in 0..200 {
            let now = stage.shard.wait(stage.until).expect("a simulation goes on");
            let keys = stage.shard.driver().keys().to_vec();
            for completion in &mut stage.shard.completions {
                let Some(key) = key_of(&keys, completion.token) else { continue };
                wrong += u32::from(key.with(completion.token.kind()) != completion.token);
                if by == By::Key {
                    completion.token = key.with(completion.token.kind());
                }
            }
            stage.until = stage.shard.turn(now);
            stage.kernel.advance_anyway();
            if !written && peer.connected().is_some() {
                written = peer.write(&sent).is_ok();
            }
            heard = peer.read(&mut got);
            if heard != SimRead::Nothing {
                break;
            }
        }
        if heard != SimRead::Bytes(1) || got[0] != sent[0] {
            return Err(format!("client {client} sent {sent:?} and heard {heard:?}"));
        }
    }
    if stage.stale() > 0 {
        return Err(format!("{} completions found no session", stage.stale()));
    }
    stage.end();
    Ok(wrong)
}

fn key_of(keys: &[(Token, Token)], token: Token) -> Option<Token> {
    keys.iter().find(|(of, _)| *of == token).map(|(_, key)| *key)
}

#[test]
fn a_session_is_found_by_its_token_though_the_key_names_another() {
    let wrong = serve(40, By::Token).expect("each client is served");
    assert!(wrong > 50, "the keys named another session {wrong} times only");
}

#[test]
fn a_session_that_is_found_by_its_key_is_another_ones() {
    // The engine's own checks may be the first to see it.
    let outcome = catch_unwind(AssertUnwindSafe(|| serve(40, By::Key)));
    if let Ok(outcome) = outcome {
        outcome.expect_err("a server that trusts the key serves the wrong sessions");
    }
}
