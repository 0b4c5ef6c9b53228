// SPDX-License-Identifier: GPL-2.0-only

use std::cell::RefCell;

use rustix::io::Errno;

use super::*;
use crate::device::SnapshotState;
use crate::device::Takes;
use crate::device::Tracking;
use crate::error::Exit;

const ID: Uuid = Uuid::from_bytes([7; 16]);

/// Writes down what is asked of it, and refuses what it is told to.
#[derive(Default)]
struct Recorder {
    calls: RefCell<Vec<String>>,
    refuse: Option<(&'static str, Operation, Errno)>,
    attached_before: Vec<&'static str>,
    error_code: i32,
    gone: bool,
}

impl Recorder {
    fn refusing(call: &'static str, operation: Operation, errno: Errno) -> Self {
        Self {
            refuse: Some((call, operation, errno)),
            ..Self::default()
        }
    }

    fn note(&self, call: String) -> Result<()> {
        let refused = self
            .refuse
            .filter(|(refused, _, _)| *refused == call)
            .map(|(_, operation, errno)| Error::from_errno(operation, errno));
        self.calls.borrow_mut().push(call);
        refused.map_or(Ok(()), Err)
    }

    fn calls(&self) -> Vec<String> {
        self.calls.borrow().clone()
    }
}

fn name(device: &Path) -> &str {
    device.file_name().unwrap().to_str().unwrap()
}

impl Kernel for Recorder {
    fn attach(&self, device: &Path) -> Result<Attachment> {
        self.note(format!("attach {}", name(device)))?;
        Ok(if self.attached_before.contains(&name(device)) {
            Attachment::Already
        } else {
            Attachment::New
        })
    }

    fn detach(&self, device: &Path) -> Result<()> {
        self.note(format!("detach {}", name(device)))
    }

    fn create(&self, _store: &Path, _limit: Sectors) -> Result<Uuid> {
        self.note("create".to_owned())?;
        Ok(ID)
    }

    fn add(&self, id: Uuid, device: &Path) -> Result<()> {
        assert_eq!(id, ID);
        self.note(format!("add {}", name(device)))
    }

    fn freeze_above(&self, id: Uuid, _devices: &[PathBuf]) -> Result<()> {
        assert_eq!(id, ID);
        self.note("freeze above".to_owned())
    }

    fn take(&self, id: Uuid) -> Result<()> {
        assert_eq!(id, ID);
        self.note("take".to_owned())
    }

    fn destroy(&self, id: Uuid) -> Result<()> {
        assert_eq!(id, ID);
        self.note("destroy".to_owned())
    }

    fn snapshot_state(&self, device: &Path) -> Result<SnapshotState> {
        Ok(SnapshotState {
            error_code: self.error_code,
            image: (!self.gone).then(|| format!("image-{}", name(device))),
        })
    }

    fn tracking(&self, _device: &Path) -> Result<Tracking> {
        unreachable!("a snapshot is held without it");
    }

    fn takes(&self, _device: &Path) -> Result<Option<Takes>> {
        unreachable!("a snapshot is held without it");
    }

    fn read_map(&self, _device: &Path, _map: &mut [u8]) -> Result<()> {
        unreachable!("a snapshot is held without it");
    }

    fn image_node(&self, image: &str) -> Option<PathBuf> {
        Some(Path::new("/dev").join(image))
    }

    fn users_of_image(&self, _image: &str) -> Vec<String> {
        Vec::new()
    }
}

fn take<'a>(
    kernel: &'a Recorder,
    detach: bool,
    keep_on: &mut dyn FnMut() -> Result<()>,
) -> Result<Held<'a>> {
    let devices = ["/dev/a".into(), "/dev/b".into()];
    Held::take(
        kernel,
        &devices,
        Path::new("/store"),
        Sectors(1),
        detach,
        &Hooks::default(),
        keep_on,
    )
}

const SET_UP: [&str; 7] = [
    "attach a",
    "attach b",
    "create",
    "add a",
    "add b",
    "freeze above",
    "take",
];

#[test]
fn release_destroys_and_leaves_the_filter() {
    let kernel = Recorder::default();
    let held = take(&kernel, false, &mut || Ok(())).unwrap();
    assert_eq!(held.id(), ID);
    assert_eq!(held.devices()[1].node, Path::new("/dev/image-b"));
    assert_eq!(kernel.calls(), SET_UP);
    assert!(held.release().is_empty());
    assert_eq!(kernel.calls()[SET_UP.len()..], ["destroy"]);
}

#[test]
fn release_detaches_only_what_was_attached_here() {
    let kernel = Recorder {
        attached_before: vec!["a"],
        ..Recorder::default()
    };
    let held = take(&kernel, true, &mut || Ok(())).unwrap();
    assert!(held.release().is_empty());
    assert_eq!(kernel.calls()[SET_UP.len()..], ["destroy", "detach b"]);
}

#[test]
fn drop_releases() {
    let kernel = Recorder::default();
    drop(take(&kernel, true, &mut || Ok(())).unwrap());
    assert_eq!(
        kernel.calls()[SET_UP.len()..],
        ["destroy", "detach b", "detach a"]
    );
}

#[test]
fn every_failure_undoes_all_before_it() {
    for (step, (operation, undone)) in [
        (Operation::Attach, &[][..]),
        (Operation::Attach, &["detach a"]),
        (Operation::Create, &["detach b", "detach a"]),
        (Operation::SnapshotAdd, &["destroy", "detach b", "detach a"]),
        (Operation::SnapshotAdd, &["destroy", "detach b", "detach a"]),
        (Operation::Freeze, &["destroy", "detach b", "detach a"]),
        (Operation::Take, &["destroy", "detach b", "detach a"]),
    ]
    .into_iter()
    .enumerate()
    {
        let kernel = Recorder::refusing(SET_UP[step], operation, Errno::BUSY);
        let error = take(&kernel, false, &mut || Ok(())).err().unwrap();
        assert_eq!(error.operation(), operation);
        let calls = kernel.calls();
        assert_eq!(calls[..=step], SET_UP[..=step]);
        assert_eq!(&calls[step + 1..], undone, "{}", SET_UP[step]);
    }
}

#[test]
fn hooks_run_around_the_take_and_their_errors_are_told() {
    let hooks = |before: &str, after: &str| Hooks {
        before: vec![before.into()],
        after: vec![after.into()],
        ..Hooks::default()
    };
    let devices = ["/dev/a".into()];
    let take = |kernel, hooks: &Hooks| {
        let store = Path::new("/store");
        Held::take(
            kernel,
            &devices,
            store,
            Sectors(1),
            false,
            hooks,
            &mut || Ok(()),
        )
        .map(|held| held.hook_errors().to_vec())
    };
    let kernel = Recorder::default();
    assert_eq!(take(&kernel, &hooks("true", "true")).unwrap(), []);
    let errors = take(&kernel, &hooks("true", "exit 2")).unwrap();
    assert!(
        errors[0].to_string().contains("exit code 2"),
        "{}",
        errors[0]
    );

    let kernel = Recorder::default();
    let error = take(&kernel, &hooks("exit 3", "true")).unwrap_err();
    assert!(error.to_string().contains("exit code 3"), "{error}");
    assert_eq!(kernel.calls()[2..], ["add a", "destroy", "detach a"]);

    let kernel = Recorder::refusing("take", Operation::Take, Errno::BUSY);
    let error = take(&kernel, &hooks("true", "exit 4")).unwrap_err();
    assert_eq!(error.operation(), Operation::Take);
    assert!(error.remedy().unwrap().contains("exit code 4"), "{error:?}");
}

#[test]
fn an_interruption_at_any_step_undoes_all_before_it() {
    for stop_at in 0.. {
        let kernel = Recorder::default();
        let mut asked = 0;
        let result = take(&kernel, false, &mut || {
            asked += 1;
            if asked > stop_at {
                return Err(Error::new(Operation::Run, "stop").exiting(Exit::Code(143)));
            }
            Ok(())
        });
        let Err(error) = result else {
            assert!(stop_at > SET_UP.len());
            break;
        };
        assert_eq!(error.exit().code(), 143);
        let calls = kernel.calls();
        let count = |prefix| calls.iter().filter(|call| call.starts_with(prefix)).count();
        assert_eq!(count("attach"), count("detach"), "{calls:?}");
        assert_eq!(count("create"), count("destroy"), "{calls:?}");
    }
}

#[test]
fn release_goes_on_after_an_error() {
    let kernel = Recorder::refusing("destroy", Operation::Destroy, Errno::NODEV);
    let held = take(&kernel, true, &mut || Ok(())).unwrap();
    let errors = held.release();
    assert_eq!(errors.len(), 1);
    assert_eq!(
        kernel.calls()[SET_UP.len()..],
        ["destroy", "detach b", "detach a"]
    );
}

#[test]
fn a_corrupted_snapshot_is_not_trusted() {
    for (error_code, word) in [
        (-28, "overflowed"),
        (-110, "ETIMEDOUT"),
        (-116, "another content"),
        (-5, "EIO"),
    ] {
        let kernel = Recorder {
            error_code,
            ..Recorder::default()
        };
        let held = take(&kernel, false, &mut || Ok(())).unwrap();
        let error = held.verify(&held.devices()[0]).unwrap_err();
        assert_eq!(error.exit(), Exit::Corrupted);
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.to_string().contains("/dev/a"), "{error}");
    }
}

#[test]
fn a_vanished_snapshot_is_not_trusted() {
    let mut kernel = Recorder::default();
    let device = {
        let held = take(&kernel, false, &mut || Ok(())).unwrap();
        held.verify(&held.devices()[0]).unwrap();
        held.devices()[0].clone()
    };
    kernel.gone = true;
    let held = Held {
        kernel: &kernel,
        id: Some(ID),
        devices: Vec::new(),
        attached: Vec::new(),
        detach: false,
        hook_errors: Vec::new(),
    };
    let error = held.verify(&device).unwrap_err();
    assert!(error.to_string().contains("destroyed"), "{error}");
}

#[test]
fn requests_go_to_what_a_link_was() {
    let temp = tempfile::tempdir().unwrap();
    let link = temp.path().join("link");
    std::fs::write(temp.path().join("a"), "").unwrap();
    std::os::unix::fs::symlink("a", &link).unwrap();
    let kernel = Recorder::default();
    let devices = [link.clone()];
    let store = Path::new("/store");
    let held = Held::take(
        &kernel,
        &devices,
        store,
        Sectors(1),
        true,
        &Hooks::default(),
        &mut || Ok(()),
    )
    .unwrap();
    assert_eq!(held.devices()[0].device, link);
    std::fs::remove_file(&link).unwrap();
    held.verify(&held.devices()[0]).unwrap();
    assert!(held.release().is_empty());
    let calls = [
        "attach a",
        "create",
        "add a",
        "freeze above",
        "take",
        "destroy",
        "detach a",
    ];
    assert_eq!(kernel.calls(), calls);
}
