// Weight storage of a channel, for benches: a word LATENCY cycles after its address. Ends the simulation
// on an address outside the file.

module eb_bank_memory #(
    parameter ADDR_BITS = 16,
    parameter DATA_BITS = 4096,
    parameter WORDS = 1,
    parameter LATENCY = 3,
    parameter FILE = "channel_0.hex"
) (
    input  wire                 aclk,
    input  wire                 en,
    input  wire [ADDR_BITS-1:0] addr,
    output wire [DATA_BITS-1:0] data
);
    reg [DATA_BITS-1:0] image [0:WORDS-1];
    initial $readmemh(FILE, image);

    reg [DATA_BITS-1:0] stage [0:LATENCY-1];
    integer n;
    assign data = stage[LATENCY-1];

    always @(posedge aclk) begin
        stage[0] <= en ? image[addr] : {DATA_BITS{1'bx}};
        for (n = 1; n < LATENCY; n = n + 1)
            stage[n] <= stage[n-1];
        if (en && addr >= WORDS) begin
            $display("FAIL: %m: row %0d of %0d", addr, WORDS);
            $fatal(1);
        end
    end
endmodule
