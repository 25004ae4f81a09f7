package policies

// The reasons of governance.

func reasonRequesterForged() Reason {
	return Reason{"RequesterForged", "MV501", "A GuardException names another requester than the user of the request"}
}

func reasonExceptionTooLong() Reason {
	return Reason{"ExceptionTooLong", "MV502", "A GuardException lasts longer than the guards take, or has ended already"}
}

func reasonExceptionWithoutEffect() Reason {
	return Reason{"ExceptionWithoutEffect", "MV503", "No guard of the namespace takes the GuardException"}
}

func reasonSelfApproval() Reason {
	return Reason{"SelfApproval", "MV504", "A GuardException is approved by the person who asked for it"}
}

func reasonApprovalForged() Reason {
	return Reason{"ApprovalForged", "MV505", "A GuardException is approved in another way than by a request of the approver's own that does nothing else"}
}

func reasonMayNotApprove() Reason {
	return Reason{"MayNotApprove", "MV506", "A GuardException is approved without the right to do so"}
}

func reasonApprovedTermsChanged() Reason {
	return Reason{"ApprovedTermsChanged", "MV507", "The terms of an approved GuardException are changed, or its end is taken back"}
}

func reasonReasonUnknown() Reason {
	return Reason{"ReasonUnknown", "MV508", "A GuardException names a reason that its policy does not have, or that is never excepted"}
}

func reasonGuardWeakened() Reason {
	return Reason{"GuardWeakened", "MV511", "A MeshGuard is weakened or deleted without the right to do so"}
}

func reasonChangeReasonMissing() Reason {
	return Reason{"ChangeReasonMissing", "MV512", "A MeshGuard is weakened or deleted without saying why"}
}

func governanceReasons() []Reason {
	return []Reason{
		reasonRequesterForged(), reasonExceptionTooLong(), reasonExceptionWithoutEffect(), reasonSelfApproval(), reasonApprovalForged(),
		reasonMayNotApprove(), reasonApprovedTermsChanged(), reasonReasonUnknown(), reasonGuardWeakened(), reasonChangeReasonMissing(),
	}
}
