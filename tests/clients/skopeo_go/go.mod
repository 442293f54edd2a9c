module example.org/skopeo_go

go 1.19
