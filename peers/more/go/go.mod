module plimsoll.invalid/peer-go

go 1.19
